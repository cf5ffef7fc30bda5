//! A CUDA device: its context, one stream, memory that is kept for reuse, and launches.
//!
//! Work of a device is queued on one stream, so memory given back may be handed out again at once:
//! whoever gets it comes later on the stream.

use super::args::{Arg, Pointer};
use super::download::Stage;
use crate::error::{Result, SimError};
use cust::context::{Context, CurrentContext};
use cust::device::DeviceAttribute;
use cust::error::{CudaError, CudaResult};
use cust::event::{Event, EventFlags};
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use cust::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Kernels, compiled ahead of time.
const PTX: &[(&str, &str)] = &[
    ("conv", include_str!("../../ptx/conv.ptx")),
    ("convert", include_str!("../../ptx/convert.ptx")),
    ("decode", include_str!("../../ptx/decode.ptx")),
    ("dynamic", include_str!("../../ptx/dynamic.ptx")),
    ("linear_f32", include_str!("../../ptx/linear_f32.ptx")),
    ("linear_i8", include_str!("../../ptx/linear_i8.ptx")),
    ("linear_wide", include_str!("../../ptx/linear_wide.ptx")),
    ("norm", include_str!("../../ptx/norm.ptx")),
    ("hadamard", include_str!("../../ptx/hadamard.ptx")),
    ("scan_block", include_str!("../../ptx/scan_block.ptx")),
    (
        "scan_sequential",
        include_str!("../../ptx/scan_sequential.ptx"),
    ),
    ("segments", include_str!("../../ptx/segments.ptx")),
];

/// Shared memory that a kernel gets without asking.
const SHARED: u32 = 48 << 10;
/// The compute capability whose products of warpgroups `linear_wide` is made of, and no other has.
const WARPGROUPS: (i32, i32) = (9, 0);

/// A GPU, opened.
pub struct Device {
    ordinal: u32,
    name: String,
    multiprocessors: u32,
    /// Shared memory that a block of threads can have.
    shared: u32,
    capability: (i32, i32),
    warpgroups: OnceLock<bool>,
    pub(super) stage: Mutex<Stage>,
    free: Mutex<HashMap<usize, Vec<Pointer>>>,
    /// Memory given out while work is recorded.
    recorded: Mutex<Option<Vec<Arc<Buffer>>>>,
    /// What was queued while it is collected instead of run.
    collected: Mutex<Option<Vec<Queued>>>,
    kernels: Mutex<Kernels>,
    running: Mutex<()>,
    stream: Stream,
    context: Context,
}

#[derive(Default)]
struct Kernels {
    modules: HashMap<&'static str, Module>,
    functions: HashMap<String, Function>,
}

/// A kernel queued, with copies of its arguments.
pub(super) struct Launch {
    pub file: &'static str,
    pub name: String,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    pub args: Vec<Box<dyn Arg>>,
}

/// Work that was queued.
pub(super) enum Queued {
    Kernel(Launch),
    /// Bytes at an address to be zeroed.
    Zero(Pointer, usize),
}

/// A kernel as the driver knows it.
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a handle of the driver, which locks for itself.
unsafe impl Send for Function {}

/// How many devices the driver sees.
///
/// # Errors
///
/// No driver, or one that does not work.
pub fn device_count() -> Result<u32> {
    cust::init(cust::CudaFlags::empty())
        .and_then(|()| cust::device::Device::num_devices())
        .map_err(|e| no_device("CUDA", e))
}

fn no_device(device: &str, error: CudaError) -> SimError {
    let found = match error {
        CudaError::NoDevice => "none".into(),
        CudaError::OutOfMemory => "one out of device memory, which other programs hold".into(),
        // What the stub library answers, and a driver without its kernel module.
        CudaError::NotInitialized | CudaError::UnknownError => {
            format!("no NVIDIA driver ({error:?})")
        }
        other => format!("{other:?}"),
    };
    SimError::value(device, "a CUDA device", found)
}

impl Device {
    /// Opens a device by its number, from 0.
    ///
    /// # Errors
    ///
    /// No driver, no such device, or one that refuses work.
    pub fn open(ordinal: u32) -> Result<Arc<Self>> {
        let item = format!("cuda:{ordinal}");
        let count = device_count()?;
        if ordinal >= count {
            let found = match count {
                0 => "none".into(),
                count => format!("devices 0 to {}", count - 1),
            };
            return Err(SimError::value(item, "a CUDA device of this number", found));
        }
        let open = || -> CudaResult<Self> {
            let device = cust::device::Device::get_device(ordinal)?;
            let context = Context::new(device)?;
            CurrentContext::set_current(&context)?;
            let attribute = |which| device.get_attribute(which);
            let mut shared = 0;
            let optional =
                sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
            // SAFETY: the driver writes one number.
            check(unsafe { sys::cuDeviceGetAttribute(&mut shared, optional, device.as_raw()) })?;
            Ok(Self {
                ordinal,
                name: device.name()?,
                multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)? as u32,
                shared: shared as u32,
                capability: (
                    attribute(DeviceAttribute::ComputeCapabilityMajor)?,
                    attribute(DeviceAttribute::ComputeCapabilityMinor)?,
                ),
                warpgroups: OnceLock::new(),
                stage: Mutex::default(),
                free: Mutex::default(),
                recorded: Mutex::default(),
                collected: Mutex::default(),
                kernels: Mutex::default(),
                running: Mutex::new(()),
                stream: Stream::new(StreamFlags::DEFAULT, None)?,
                context,
            })
        };
        open().map(Arc::new).map_err(|e| no_device(&item, e))
    }

    /// The device's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Multiprocessors.
    pub(super) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Shared memory that a block of threads can have.
    pub(super) fn shared(&self) -> u32 {
        self.shared
    }

    /// Whether `linear_wide` runs here: the device has products of warpgroups, and the driver knows them.
    pub(super) fn has_warpgroups(&self) -> bool {
        *self.warpgroups.get_or_init(|| {
            self.capability == WARPGROUPS
                && self
                    .function("linear_wide", "linear_wide_192_to_i8")
                    .is_ok()
        })
    }

    /// Takes the device for the calling thread, until the guard is dropped.
    pub(super) fn enter(&self) -> Result<MutexGuard<'_, ()>> {
        // A thread that panicked left nothing half-done here: buffers return by themselves.
        let guard = self.running.lock().unwrap_or_else(|e| e.into_inner());
        self.current()?;
        Ok(guard)
    }

    fn current(&self) -> Result<()> {
        CurrentContext::set_current(&self.context).map_err(|e| self.error("context", e))
    }

    pub(super) fn error(&self, what: &str, error: CudaError) -> SimError {
        let hint = match error {
            CudaError::OutOfMemory => "out of device memory",
            CudaError::EccUncorrectable | CudaError::NvlinkUncorrectable => "the device failed",
            CudaError::UnknownError => "the device or its driver failed",
            _ => "the device refused",
        };
        SimError::Device {
            device: format!("cuda:{} ({})", self.ordinal, self.name),
            what: what.into(),
            problem: format!("{hint} ({error:?})"),
        }
    }

    /// Memory of at least this many bytes, content undefined.
    pub(super) fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Arc<Buffer>> {
        // Few sizes, so that sequences of any length find memory of those before them.
        let step = (bytes.next_power_of_two() / 8).max(512);
        let bytes = bytes.max(1).next_multiple_of(step);
        let mut free = self.free.lock().expect("no thread panics with the lock");
        let kept = free.get_mut(&bytes).and_then(Vec::pop);
        let pointer = match kept {
            Some(pointer) => pointer,
            None => match self.allocate_new(bytes) {
                Err(CudaError::OutOfMemory) => {
                    self.release(&mut free);
                    self.allocate_new(bytes)
                        .map_err(|e| self.out_of_memory(bytes, e))?
                }
                other => other.map_err(|e| self.error("memory", e))?,
            },
        };
        let buffer = Arc::new(Buffer {
            device: Arc::clone(self),
            pointer,
            bytes,
        });
        if let Some(recorded) = &mut *self.recorded() {
            recorded.push(Arc::clone(&buffer));
        }
        Ok(buffer)
    }

    fn recorded(&self) -> MutexGuard<'_, Option<Vec<Arc<Buffer>>>> {
        self.recorded
            .lock()
            .expect("no thread panics with the lock")
    }

    /// Keeps all memory given out from now on, also what its owners drop.
    pub(super) fn keep_memory(&self) {
        *self.recorded() = Some(Vec::new());
    }

    /// Hands over what [`Device::keep_memory`] kept.
    pub(super) fn kept_memory(&self) -> Vec<Arc<Buffer>> {
        self.recorded().take().unwrap_or_default()
    }

    /// The stream that all work is queued on.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.stream.as_inner()
    }

    fn allocate_new(&self, bytes: usize) -> CudaResult<Pointer> {
        let mut pointer = 0;
        // SAFETY: the context is current; the driver writes one pointer.
        check(unsafe { sys::cuMemAlloc_v2(&mut pointer, bytes) })?;
        Ok(pointer)
    }

    fn out_of_memory(&self, bytes: usize, error: CudaError) -> SimError {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two sizes.
        let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        let what = format!(
            "{} MiB beside {} of {} MiB in use",
            bytes.div_ceil(1 << 20),
            (total - free) >> 20,
            total >> 20
        );
        self.error(&what, error)
    }

    /// Gives memory nobody holds back to the driver.
    fn release(&self, free: &mut HashMap<usize, Vec<Pointer>>) {
        let _ = self.stream.synchronize();
        for pointer in free.drain().flat_map(|(_, pointers)| pointers) {
            // SAFETY: allocated by `allocate_new`, held by nobody, used by nothing in flight.
            let _ = unsafe { sys::cuMemFree_v2(pointer) };
        }
    }

    /// Copies values to the device.
    pub(super) fn upload<T: bytemuck::NoUninit>(
        self: &Arc<Self>,
        values: &[T],
    ) -> Result<Arc<Buffer>> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.allocate(bytes.len())?;
        self.write(&buffer, values)?;
        Ok(buffer)
    }

    /// Copies values to the front of a buffer.
    pub(super) fn write<T: bytemuck::NoUninit>(&self, buffer: &Buffer, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        assert!(bytes.len() <= buffer.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: the buffer is as long; pageable memory is read before the call returns.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                buffer.pointer,
                bytes.as_ptr().cast(),
                bytes.len(),
                self.stream.as_inner(),
            )
        };
        check(code).map_err(|e| self.error("copy to the device", e))
    }

    /// Zeros `bytes` of a buffer.
    pub(super) fn zero(&self, buffer: &Buffer, bytes: usize) -> Result<()> {
        assert!(bytes <= buffer.bytes);
        self.zero_at(buffer.pointer, bytes)
    }

    fn zero_at(&self, pointer: Pointer, bytes: usize) -> Result<()> {
        if let Some(collected) = &mut *self.collected() {
            collected.push(Queued::Zero(pointer, bytes));
            return Ok(());
        }
        // SAFETY: callers name as many bytes of a live buffer.
        let code = unsafe { sys::cuMemsetD8Async(pointer, 0, bytes, self.stream.as_inner()) };
        check(code).map_err(|e| self.error("clearing memory", e))
    }

    fn collected(&self) -> MutexGuard<'_, Option<Vec<Queued>>> {
        self.collected
            .lock()
            .expect("no thread panics with the lock")
    }

    /// Collects what `work` queues instead of running it.
    pub(super) fn collect<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Queued>)> {
        *self.collected() = Some(Vec::new());
        let done = work();
        let collected = self.collected().take().unwrap_or_default();
        Ok((done?, collected))
    }

    /// Makes the kernels of collected work ready to be queued.
    pub(super) fn load(&self, queued: &[Queued]) -> Result<()> {
        for work in queued {
            if let Queued::Kernel(launch) = work {
                self.function(launch.file, &launch.name)?;
            }
        }
        Ok(())
    }

    /// Queues what was collected.
    pub(super) fn queue(&self, queued: &[Queued]) -> Result<()> {
        for work in queued {
            match work {
                Queued::Kernel(launch) => {
                    let args: Vec<&dyn Arg> = launch.args.iter().map(|arg| &**arg).collect();
                    let Launch {
                        file,
                        ref name,
                        grid,
                        threads,
                        shared,
                        ..
                    } = *launch;
                    self.launch(file, name, grid, threads, shared, &args)?;
                }
                Queued::Zero(pointer, bytes) => self.zero_at(*pointer, *bytes)?,
            }
        }
        Ok(())
    }

    /// Copies all of a buffer to another of the same size.
    pub(super) fn copy(&self, from: &Buffer, to: &Buffer) -> Result<()> {
        assert_eq!(from.bytes, to.bytes);
        let (bytes, stream) = (from.bytes, self.stream.as_inner());
        // SAFETY: both buffers are as long.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to.pointer, from.pointer, bytes, stream) };
        check(code).map_err(|e| self.error("copy on the device", e))
    }

    /// Waits until everything queued is done; an error of any of it comes out here.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|e| self.error("kernels", e))
    }

    /// A mark on the stream.
    pub(super) fn event(&self) -> Result<Event> {
        Event::new(EventFlags::DEFAULT)
            .and_then(|event| event.record(&self.stream).map(|()| event))
            .map_err(|e| self.error("event", e))
    }

    /// Queues a kernel `name` of the file `file`.
    pub(super) fn launch(
        &self,
        file: &'static str,
        name: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        args: &[&dyn Arg],
    ) -> Result<()> {
        if let Some(collected) = &mut *self.collected() {
            collected.push(Queued::Kernel(Launch {
                file,
                name: name.into(),
                grid,
                threads,
                shared,
                args: args.iter().map(|arg| arg.keep()).collect(),
            }));
            return Ok(());
        }
        let failed = |e| self.error(name, e);
        let function = self.function(file, name)?;
        if shared > SHARED {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a live function.
            check(unsafe { sys::cuFuncSetAttribute(function.0, attribute, shared as i32) })
                .map_err(failed)?;
        }
        let mut addresses: Vec<*mut c_void> = args.iter().map(|arg| arg.address()).collect();
        // SAFETY: as many arguments as the kernel has, of its types (`args`); memory they name is
        // alive until the stream passes this launch, or reused by later launches only.
        let code = unsafe {
            sys::cuLaunchKernel(
                function.0,
                grid[0],
                grid[1],
                grid[2],
                threads,
                1,
                1,
                shared,
                self.stream.as_inner(),
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(code).map_err(failed)
    }

    fn function(&self, file: &'static str, name: &str) -> Result<Function> {
        let mut kernels = self.kernels.lock().expect("no thread panics with the lock");
        if let Some(function) = kernels.functions.get(name) {
            return Ok(*function);
        }
        let Kernels { modules, functions } = &mut *kernels;
        if !modules.contains_key(file) {
            let ptx = PTX.iter().find(|(name, _)| *name == file);
            let (_, ptx) = ptx.expect("kernels name a file of the list");
            let module = Module::from_ptx(ptx, &[]).map_err(|e| self.unloadable(file, e))?;
            modules.insert(file, module);
        }
        let function = modules[file]
            .get_function(name)
            .map_err(|e| self.error(name, e))?;
        let function = Function(function.to_raw());
        functions.insert(name.into(), function);
        Ok(function)
    }

    /// Kernels that a driver cannot translate: nearly always one older than their PTX.
    fn unloadable(&self, file: &str, error: CudaError) -> SimError {
        let mut version = 0;
        // SAFETY: the driver writes one number.
        let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
        let (major, minor) = (version / 1000, version % 1000 / 10);
        SimError::Device {
            device: format!("cuda:{} ({})", self.ordinal, self.name),
            what: format!("kernels of {file}"),
            problem: format!(
                "need a GPU of compute capability 8.0 and a driver for CUDA 11.1 or later; this \
                 driver is for CUDA {major}.{minor} ({error:?})"
            ),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.current().is_ok() {
            let mut free =
                std::mem::take(&mut *self.free.lock().unwrap_or_else(|e| e.into_inner()));
            self.release(&mut free);
            let stage = self.stage.get_mut();
            stage.unwrap_or_else(|e| e.into_inner()).free();
        }
    }
}

/// The driver's answer as a result.
pub(super) fn check(code: sys::CUresult) -> CudaResult<()> {
    match code as u32 {
        0 => Ok(()),
        1 => Err(CudaError::InvalidValue),
        2 => Err(CudaError::OutOfMemory),
        3 => Err(CudaError::NotInitialized),
        214 => Err(CudaError::EccUncorrectable),
        700 => Err(CudaError::IllegalAddress),
        701 => Err(CudaError::LaunchOutOfResources),
        702 => Err(CudaError::LaunchTimeout),
        716 => Err(CudaError::MisalignedAddress),
        719 => Err(CudaError::LaunchFailed),
        _ => Err(CudaError::UnknownError),
    }
}

/// Device memory; given back for reuse when dropped.
pub(super) struct Buffer {
    device: Arc<Device>,
    pointer: Pointer,
    bytes: usize,
}

impl Buffer {
    /// Its address.
    pub fn pointer(&self) -> Pointer {
        self.pointer
    }

    /// Its device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut free) = self.device.free.lock() {
            free.entry(self.bytes).or_default().push(self.pointer);
        }
    }
}
