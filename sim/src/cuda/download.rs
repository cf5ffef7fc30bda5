//! From the device to the host.

use super::args::Pointer;
use super::device::{Device, check};
use crate::error::Result;
use cust::sys;
use std::ffi::c_void;

/// Bytes up to which a copy to the host goes by way of memory that the device writes itself.
const STAGED: usize = 1 << 20;

/// Memory of the host that the device writes to; null before its first use.
pub(super) struct Stage(*mut c_void);

impl Default for Stage {
    fn default() -> Self {
        Self(std::ptr::null_mut())
    }
}

// SAFETY: memory that belongs to nobody else.
unsafe impl Send for Stage {}

impl Stage {
    /// Gives the memory back; the device's context is current.
    pub(super) fn free(&mut self) {
        if !self.0.is_null() {
            // SAFETY: allocated by `download_staged`; whoever holds the stage alone knows that no copy is under way.
            let _ = unsafe { sys::cuMemFreeHost(self.0) };
            self.0 = std::ptr::null_mut();
        }
    }
}

impl Device {
    /// Copies `count` values from the device, after all work queued before.
    pub(super) fn download<T: bytemuck::Pod>(&self, from: Pointer, count: usize) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); count];
        if count > 0 {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            if bytes.len() <= STAGED && self.download_staged(from, bytes)? {
                return Ok(values);
            }
            // SAFETY: callers name `count` values of a live buffer.
            let code = unsafe {
                sys::cuMemcpyDtoHAsync_v2(
                    bytes.as_mut_ptr().cast(),
                    from,
                    bytes.len(),
                    self.stream(),
                )
            };
            check(code).map_err(|e| self.error("copy from the device", e))?;
        }
        self.synchronize()?;
        Ok(values)
    }

    /// Copies a few bytes from the device, which itself writes to memory that stays where it is: the driver would
    /// otherwise do so in pieces. False if the host has none.
    fn download_staged(&self, from: Pointer, bytes: &mut [u8]) -> Result<bool> {
        let mut stage = self.stage.lock().expect("no thread panics with the lock");
        if stage.0.is_null() {
            // SAFETY: the context is current; the driver writes one pointer.
            if check(unsafe { sys::cuMemAllocHost_v2(&mut stage.0, STAGED) }).is_err() {
                return Ok(false);
            }
        }
        // SAFETY: both sides have as many bytes.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(stage.0, from, bytes.len(), self.stream()) };
        check(code).map_err(|e| self.error("copy from the device", e))?;
        self.synchronize()?;
        // SAFETY: the copy is done, and the lock keeps others away.
        let copied = unsafe { std::slice::from_raw_parts(stage.0.cast::<u8>(), bytes.len()) };
        bytes.copy_from_slice(copied);
        Ok(true)
    }
}
