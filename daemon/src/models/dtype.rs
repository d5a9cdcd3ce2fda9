//! What weights and KV cache are held in.

use std::fmt;

use mlx_rs::Dtype as MlxDtype;

/// A floating-point format of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of a single.
    Bfloat16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Float16, Self::Bfloat16];

    /// As vLLM and the wire spell it; `None` if `name` is not the name of one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// As vLLM and the wire spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }

    /// MLX's name of it.
    #[must_use]
    pub fn mlx(self) -> MlxDtype {
        match self {
            Self::Float32 => MlxDtype::Float32,
            Self::Float16 => MlxDtype::Float16,
            Self::Bfloat16 => MlxDtype::Bfloat16,
        }
    }

    /// The format of a tensor in a checkpoint; `None` if it is not a floating-point format that
    /// we read.
    #[must_use]
    pub fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::Float32),
            safetensors::Dtype::F16 => Some(Self::Float16),
            safetensors::Dtype::BF16 => Some(Self::Bfloat16),
            _ => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        for name in ["auto", "half", "Float32", ""] {
            assert_eq!(Dtype::from_name(name), None, "{name}");
        }
    }
}
