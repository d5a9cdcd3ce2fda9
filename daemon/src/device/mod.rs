//! What models run on, and how much memory there is.
//!
//! # Layout
//! - [`Device`]: CPU or GPU, chosen once at start
//! - [`memory`]: the budget that weights and caches share

pub mod memory;

use std::fmt;
use std::str::FromStr;

pub use memory::{MemoryBudget, TooLarge};
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
    /// MLX has none, or cannot ask it.
    #[error("MLX finds no GPU that it can use; set VLLM_MLX_DEVICE=cpu or pass --device cpu")]
    NoGpu,
}

impl Device {
    /// Makes this the device of every MLX operation of the process.
    ///
    /// # Errors
    /// [`DeviceError::NoGpu`].
    pub fn select(self) -> Result<(), DeviceError> {
        let device = match self {
            Self::Cpu => mlx_rs::Device::cpu(),
            Self::Gpu => {
                gpu_memory_bytes()?;
                mlx_rs::Device::gpu()
            }
        };
        mlx_rs::Device::set_default(&device);
        Ok(())
    }

    /// Its memory; `None` for that of the machine.
    ///
    /// # Errors
    /// [`DeviceError::NoGpu`].
    pub fn own_memory_bytes(self) -> Result<Option<u64>, DeviceError> {
        match self {
            Self::Cpu => Ok(None),
            Self::Gpu => gpu_memory_bytes().map(Some),
        }
    }

    /// Tokens of a turn of the device, if nobody says otherwise: what takes a few times as long as
    /// decoding one token. A GPU computes more tokens while it reads the weights once.
    #[must_use]
    pub fn turn_tokens(self) -> u32 {
        match self {
            Self::Cpu => 64,
            Self::Gpu => 256,
        }
    }

    /// MLX's name of it.
    #[must_use]
    pub fn mlx(self) -> DeviceType {
        match self {
            Self::Cpu => DeviceType::Cpu,
            Self::Gpu => DeviceType::Gpu,
        }
    }
}

fn gpu_memory_bytes() -> Result<u64, DeviceError> {
    let known = metal_rpc_kernels::gpu_memory_bytes().ok().flatten();
    known.ok_or(DeviceError::NoGpu)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_is_refused() {
        let known = metal_rpc_kernels::gpu_memory_bytes().expect("MLX can say");
        match known {
            Some(bytes) => assert_eq!(Device::Gpu.own_memory_bytes(), Ok(Some(bytes))),
            None => assert_eq!(Device::Gpu.select(), Err(DeviceError::NoGpu)),
        }
    }
}
