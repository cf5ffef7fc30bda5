//! Work recorded once and queued as a whole. One token's decode is hundreds of launches of a few
//! microseconds each: queued one by one, the device waits for the host.

use super::device::{Buffer, Device, Queued, check};
use crate::error::Result;
use cust::sys;
use std::sync::Arc;

/// Recorded work, with the memory it uses.
pub struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
    /// Every buffer that the work was given, kept from all others for as long as it can run.
    _memory: Vec<Arc<Buffer>>,
}

// SAFETY: a handle of the driver; it is launched with the device entered.
unsafe impl Send for Graph {}

impl Graph {
    /// Records work instead of running it: what `work` returns beside its result, which it collected. It may
    /// neither wait nor copy from or to the host. Returns its result beside the graph.
    ///
    /// # Errors
    ///
    /// Those of `work`; a device that cannot record it.
    pub fn record<T>(
        device: &Arc<Device>,
        work: impl FnOnce() -> Result<(T, Vec<Queued>)>,
    ) -> Result<(Self, T)> {
        let failed = |e| device.error("recording", e);
        let stream = device.stream();
        device.keep_memory();
        let done = work();
        let memory = device.kept_memory();
        let (done, queued) = done?;
        device.load(&queued)?;
        // Relaxed: memory may be taken meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }).map_err(failed)?;
        let recorded = device.queue(&queued);
        let mut graph = std::ptr::null_mut();
        // SAFETY: the stream records since the call above; the driver writes one handle.
        let ended = check(unsafe { sys::cuStreamEndCapture(stream, &mut graph) });
        recorded?;
        ended.map_err(failed)?;
        let mut executable = std::ptr::null_mut();
        let none = std::ptr::null_mut();
        // SAFETY: a graph just recorded, given back after it was translated; no log is asked for.
        let code = unsafe {
            let code = sys::cuGraphInstantiate_v2(&mut executable, graph, none, none.cast(), 0);
            sys::cuGraphDestroy(graph);
            code
        };
        check(code).map_err(failed)?;
        let graph = Self {
            device: Arc::clone(device),
            executable,
            _memory: memory,
        };
        Ok((graph, done))
    }

    /// Queues the work once more.
    ///
    /// # Errors
    ///
    /// A device lost.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: a live graph, whose memory is held.
        let code = unsafe { sys::cuGraphLaunch(self.executable, self.device.stream()) };
        check(code).map_err(|e| self.device.error("recorded work", e))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `record`; the driver waits for launches in flight.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
