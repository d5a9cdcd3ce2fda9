//! Element types that kernels read and write.

use half::{bf16, f16};
use mlx_rs::{Array, Dtype};

use crate::{
    error::{KernelError, Result},
    simd::Lanes,
};

/// A type for which any bits of its size are a value.
///
/// # Safety
/// Only types without padding and without invalid bit patterns may implement it.
pub(crate) unsafe trait Scalar: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers, or transparent wrappers of plain numbers.
unsafe impl Scalar for f32 {}
// SAFETY: as above.
unsafe impl Scalar for bf16 {}
// SAFETY: as above.
unsafe impl Scalar for f16 {}
// SAFETY: as above.
unsafe impl Scalar for i32 {}
// SAFETY: as above.
unsafe impl Scalar for u32 {}
// SAFETY: as above.
unsafe impl Scalar for u8 {}

/// A floating-point type of weights and caches. Arithmetic is always in f32.
pub(crate) trait Float: Scalar {
    /// Its name as a value.
    const TYPE: FloatType;

    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Eight values as f32.
    ///
    /// # Safety
    /// Eight elements are readable at `ptr`; the CPU has what `L` needs.
    unsafe fn load<L: Lanes>(ptr: *const Self) -> L;
}

impl Float for f32 {
    const TYPE: FloatType = FloatType::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(ptr: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(ptr) }
    }
}

impl Float for bf16 {
    const TYPE: FloatType = FloatType::Bf16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(ptr: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(ptr) }
    }
}

impl Float for f16 {
    const TYPE: FloatType = FloatType::F16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(ptr: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(ptr) }
    }
}

/// Which [`Float`] an array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    F32,
    Bf16,
    F16,
}

impl FloatType {
    /// The type of `array`, or the error that names `argument`.
    pub(crate) fn of(kernel: &'static str, argument: &'static str, array: &Array) -> Result<Self> {
        match array.dtype() {
            Dtype::Float32 => Ok(Self::F32),
            Dtype::Bfloat16 => Ok(Self::Bf16),
            Dtype::Float16 => Ok(Self::F16),
            actual => Err(KernelError::Dtype {
                kernel,
                argument,
                rule: "float32, bfloat16 or float16",
                actual,
            }),
        }
    }
}

/// Runs the body once, with `$T` standing for the type that `$float_type` names.
macro_rules! with_float_type {
    ($float_type:expr, $T:ident => $body:expr) => {
        match $float_type {
            $crate::element::FloatType::F32 => {
                type $T = f32;
                $body
            }
            $crate::element::FloatType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            $crate::element::FloatType::F16 => {
                type $T = half::f16;
                $body
            }
        }
    };
}
pub(crate) use with_float_type;
