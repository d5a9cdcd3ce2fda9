//! What models run on, and how much memory there is.
//!
//! # Layout
//! - [`Device`]: CPU or GPU, chosen once at start
//! - [`memory`]: the budget that weights and caches share

pub mod memory;

use std::fmt;
use std::str::FromStr;

pub use memory::MemoryBudget;
use mlx_rs::DeviceType;

/// What models run on. Chosen once, before the engine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// MLX's CPU backend with our native kernels.
    Cpu,
    /// MLX's GPU backend.
    Gpu,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not one of the names.
    #[error("device must be cpu or gpu, but is {0:?}")]
    Unknown(String),
    /// The kernels have no version for it.
    #[error("this build has no GPU kernels; set VLLM_MLX_DEVICE=cpu or pass --device cpu")]
    NoGpu,
}

impl Device {
    /// Makes this the device of every MLX operation of the process.
    ///
    /// # Errors
    /// [`DeviceError::NoGpu`].
    pub fn select(self) -> Result<(), DeviceError> {
        match self {
            Self::Cpu => {
                mlx_rs::Device::set_default(&mlx_rs::Device::cpu());
                Ok(())
            }
            Self::Gpu => Err(DeviceError::NoGpu),
        }
    }
}

impl Device {
    /// MLX's name of it.
    #[must_use]
    pub fn mlx(self) -> DeviceType {
        match self {
            Self::Cpu => DeviceType::Cpu,
            Self::Gpu => DeviceType::Gpu,
        }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu),
            _ => Err(DeviceError::Unknown(name.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        })
    }
}
