//! How a quantised matrix is held: MLX's layout, so that MLX's own functions take the same arrays.

use mlx_rs::{Array, Dtype};

use crate::{
    check::Arguments,
    element::FloatType,
    error::{KernelError, Result},
};

const CHECK: Arguments = Arguments {
    kernel: "quantized_linear",
};

/// How numbers stand for weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizedFormat {
    /// `weight = scale * integer + bias`; scale and bias are shared by a group of inputs.
    Affine {
        /// Bits of an integer: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Inputs that share scale and bias: 32, 64 or 128.
        group_size: u8,
    },
    /// OCP microscaling: 4-bit floats (E2M1) that share a power of two (E8M0) by 32 inputs.
    Mxfp4,
}

impl QuantizedFormat {
    /// Widths of integers.
    pub const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];

    /// Sizes of groups.
    pub const GROUP_SIZES: [u8; 3] = [32, 64, 128];

    /// Bits of one weight, without what its group shares.
    #[must_use]
    pub fn bits(self) -> i32 {
        match self {
            Self::Affine { bits, .. } => i32::from(bits),
            Self::Mxfp4 => 4,
        }
    }

    /// Inputs that share a scale.
    #[must_use]
    pub fn group_size(self) -> i32 {
        match self {
            Self::Affine { group_size, .. } => i32::from(group_size),
            Self::Mxfp4 => 32,
        }
    }

    /// Whether it is one that kernels know.
    #[must_use]
    pub fn is_known(self) -> bool {
        match self {
            Self::Affine { bits, group_size } => {
                Self::BITS.contains(&bits) && Self::GROUP_SIZES.contains(&group_size)
            }
            Self::Mxfp4 => true,
        }
    }
}

/// A matrix `[outputs, inputs]` in a [`QuantizedFormat`].
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    format: QuantizedFormat,
    inputs: i32,
    packed: Array,
    scales: Array,
    biases: Option<Array>,
}

impl QuantizedMatrix {
    /// Puts the parts together.
    ///
    /// # Shapes
    /// - `packed`: `[outputs, inputs * bits / 32]` uint32: the integers of an output one after the
    ///   other, from the lowest bit of the first word on
    /// - `scales`: `[outputs, inputs / group_size]`: float32, bfloat16 or float16 for an affine
    ///   format, uint8 exponents for `Mxfp4`
    /// - `biases`: as `scales` for an affine format, `None` for `Mxfp4`
    ///
    /// # Errors
    /// [`KernelError`] if the parts do not fit each other.
    pub fn new(
        format: QuantizedFormat,
        packed: Array,
        scales: Array,
        biases: Option<Array>,
    ) -> Result<Self> {
        let value = |argument, rule| KernelError::Value {
            kernel: CHECK.kernel,
            argument,
            rule,
        };
        if !format.is_known() {
            return Err(value(
                "format",
                "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
            ));
        }
        CHECK.dtype("packed", &packed, Dtype::Uint32, "uint32")?;
        CHECK.ndim("packed", &packed, 2, "[outputs, words]")?;
        CHECK.ndim("scales", &scales, 2, "[outputs, groups]")?;
        let (outputs, groups) = (scales.dim(0), scales.dim(1));
        let Some(inputs) = groups.checked_mul(format.group_size()) else {
            return Err(value("scales", "of fewer than 2^31 inputs"));
        };
        // A group of 32 is a whole number of words at any width.
        let words = inputs / 32 * format.bits();
        CHECK.dims(
            "packed",
            &packed,
            &[outputs, words],
            "[outputs, inputs * bits / 32]",
        )?;
        match (format, &biases) {
            (QuantizedFormat::Affine { .. }, Some(biases)) => {
                FloatType::of(CHECK.kernel, "scales", &scales)?;
                CHECK.dtype("biases", biases, scales.dtype(), "that of scales")?;
                CHECK.dims("biases", biases, &[outputs, groups], "that of scales")?;
            }
            (QuantizedFormat::Mxfp4, None) => {
                CHECK.dtype("scales", &scales, Dtype::Uint8, "uint8")?;
            }
            _ => {
                return Err(value(
                    "biases",
                    "there for affine formats, and only for them",
                ));
            }
        }
        Ok(Self {
            format,
            inputs,
            packed,
            scales,
            biases,
        })
    }

    /// How it is held.
    #[must_use]
    pub fn format(&self) -> QuantizedFormat {
        self.format
    }

    /// Its rows.
    #[must_use]
    pub fn outputs(&self) -> i32 {
        self.scales.dim(0)
    }

    /// Its columns.
    #[must_use]
    pub fn inputs(&self) -> i32 {
        self.inputs
    }

    /// `[outputs, inputs * bits / 32]` uint32.
    #[must_use]
    pub fn packed(&self) -> &Array {
        &self.packed
    }

    /// `[outputs, inputs / group_size]`.
    #[must_use]
    pub fn scales(&self) -> &Array {
        &self.scales
    }

    /// As the scales.
    #[must_use]
    pub fn biases(&self) -> Option<&Array> {
        self.biases.as_ref()
    }

    /// What it takes in memory.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        let biases = self.biases.as_ref().map_or(0, Array::nbytes);
        self.packed.nbytes() + self.scales.nbytes() + biases
    }
}
