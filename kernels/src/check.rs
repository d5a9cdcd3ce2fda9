//! Checks of arguments that every kernel's safe face makes before it adds a node.

use std::borrow::Cow;

use mlx_rs::{Array, Dtype};

use crate::{
    element::FloatType,
    error::{KernelError, Result},
};

/// Makes the errors of one kernel.
#[derive(Clone, Copy)]
pub(crate) struct Arguments {
    pub(crate) kernel: &'static str,
}

impl Arguments {
    /// The error that `array` has not the shape that `rule` describes.
    pub(crate) fn shape(
        self,
        argument: &'static str,
        array: &Array,
        rule: &'static str,
    ) -> KernelError {
        KernelError::Shape {
            kernel: self.kernel,
            argument,
            rule,
            actual: array.shape().to_vec(),
        }
    }

    pub(crate) fn ndim(
        self,
        argument: &'static str,
        array: &Array,
        ndim: usize,
        rule: &'static str,
    ) -> Result<()> {
        if array.ndim() == ndim {
            Ok(())
        } else {
            Err(self.shape(argument, array, rule))
        }
    }

    pub(crate) fn dims(
        self,
        argument: &'static str,
        array: &Array,
        dims: &[i32],
        rule: &'static str,
    ) -> Result<()> {
        if array.shape() == dims {
            Ok(())
        } else {
            Err(self.shape(argument, array, rule))
        }
    }

    pub(crate) fn dtype(
        self,
        argument: &'static str,
        array: &Array,
        dtype: Dtype,
        rule: &'static str,
    ) -> Result<()> {
        if array.dtype() == dtype {
            Ok(())
        } else {
            Err(KernelError::Dtype {
                kernel: self.kernel,
                argument,
                rule,
                actual: array.dtype(),
            })
        }
    }

    /// `array` of dtype float32: itself, or a cast of it.
    pub(crate) fn as_f32<'a>(
        self,
        argument: &'static str,
        array: &'a Array,
    ) -> Result<Cow<'a, Array>> {
        match FloatType::of(self.kernel, argument, array)? {
            FloatType::F32 => Ok(Cow::Borrowed(array)),
            FloatType::Bf16 | FloatType::F16 => Ok(Cow::Owned(array.as_dtype(Dtype::Float32)?)),
        }
    }

    /// A dimension as a size. MLX has no negative dimension.
    pub(crate) fn size(self, dim: i32) -> usize {
        usize::try_from(dim).expect("a dimension is never negative")
    }

    /// Number of elements of these dimensions.
    pub(crate) fn product(self, dims: &[i32]) -> usize {
        dims.iter().map(|&dim| self.size(dim)).product()
    }
}
