//! `--device`: where a model runs. The feature `cuda` adds GPUs; without it they are refused with a
//! word on how to build them in.

use scalescope_sim::datapath::Datapath;
use scalescope_sim::engine::Engine;
use scalescope_sim::error::{Result, SimError};
use std::str::FromStr;

#[cfg(feature = "cuda")]
use scalescope_sim::cuda;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// `cpu`, `cuda`, `cuda:1`, `cuda:0,cuda:1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    /// This machine's processor.
    Cpu,
    /// GPUs by number.
    Cuda(Vec<u32>),
}

impl std::fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceArg::Cpu => f.write_str("cpu"),
            DeviceArg::Cuda(ordinals) => {
                let names: Vec<String> = ordinals.iter().map(|i| format!("cuda:{i}")).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "cpu" {
            return Ok(DeviceArg::Cpu);
        }
        let mut ordinals = Vec::new();
        for name in text.split(',') {
            let ordinal = match name.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            match ordinal {
                Some(ordinal) if !ordinals.contains(&ordinal) => ordinals.push(ordinal),
                Some(_) => return Err(format!("{name} twice")),
                None => return Err("expected cpu, cuda, cuda:1, or cuda:0,cuda:1".into()),
            }
        }
        Ok(DeviceArg::Cuda(ordinals))
    }
}

/// Devices, opened.
pub enum Devices {
    /// This machine's processor.
    Cpu,
    /// GPUs.
    #[cfg(feature = "cuda")]
    Cuda(Vec<Arc<cuda::Device>>),
}

impl Devices {
    /// Opens what an argument names.
    ///
    /// # Errors
    ///
    /// GPUs without the feature `cuda`, without a driver, or that are not there.
    pub fn open(arg: &DeviceArg) -> Result<Self> {
        match arg {
            DeviceArg::Cpu => Ok(Devices::Cpu),
            #[cfg(feature = "cuda")]
            DeviceArg::Cuda(ordinals) => {
                let open = ordinals.iter().map(|i| cuda::Device::open(*i));
                Ok(Devices::Cuda(open.collect::<Result<_>>()?))
            }
            #[cfg(not(feature = "cuda"))]
            DeviceArg::Cuda(_) => Err(SimError::value(
                "GPU",
                "a build with the feature cuda (`cargo build --release --features cuda`, docs/cuda.md)",
                "a build without it",
            )),
        }
    }

    /// Opens the one device that an argument names.
    ///
    /// # Errors
    ///
    /// Those of [`Devices::open`], and several devices.
    pub fn open_one(arg: &DeviceArg) -> Result<Self> {
        match arg {
            DeviceArg::Cuda(ordinals) if ordinals.len() > 1 => Err(SimError::value(
                "--device",
                "one device (`eval` takes several)",
                format_args!("{} devices", ordinals.len()),
            )),
            arg => Self::open(arg),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Devices::Cpu => 1,
            #[cfg(feature = "cuda")]
            Devices::Cuda(devices) => devices.len(),
        }
    }

    /// A prepared model on device `i` of these.
    ///
    /// # Errors
    ///
    /// Rules the device has no kernels for, too little memory on it.
    pub fn engine<'m>(&self, path: Datapath<'m>, i: usize) -> Result<Box<dyn Engine + 'm>> {
        assert!(i < self.count());
        match self {
            Devices::Cpu => Ok(Box::new(path)),
            #[cfg(feature = "cuda")]
            Devices::Cuda(devices) => Ok(Box::new(cuda::CudaDatapath::new(path, &devices[i])?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        let parse = |text: &str| text.parse::<DeviceArg>();
        assert_eq!(parse("cpu"), Ok(DeviceArg::Cpu));
        assert_eq!(parse("cuda"), Ok(DeviceArg::Cuda(vec![0])));
        assert_eq!(parse("cuda:3"), Ok(DeviceArg::Cuda(vec![3])));
        assert_eq!(parse("cuda:0,cuda:2"), Ok(DeviceArg::Cuda(vec![0, 2])));
        for bad in [
            "",
            "gpu",
            "cuda:",
            "cuda:x",
            "cuda:-1",
            "cpu,cuda",
            "cuda,cuda:0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
