//! What the bits of a quantised weight mean, and how they become weights.
//!
//! # Cost
//! One row on AVX2: five instructions for eight weights (shift, mask, convert, and two
//! multiply-adds), scale and bias once a group. Codes of four bits on AVX-512: `packed/sixteen.rs`.

use std::marker::PhantomData;

use crate::simd::{E2M1, Lanes};

/// The integers of four bits.
const FOUR_BITS: [f32; 16] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

/// What the bits of a weight mean.
pub(super) trait Code: Copy + Send + Sync + 'static {
    /// Bytes of eight codes.
    const EIGHT_SIZE_BYTES: usize;

    /// What the codes mean, if they have four bits.
    const VALUES: Option<&'static [f32; 16]> = None;

    /// They are unsigned integers of four or eight bits.
    const IS_INTEGER: bool = false;

    /// # Safety
    /// Eight codes are readable at `ptr`.
    unsafe fn load<L: Lanes>(ptr: *const u8) -> L;
}

/// Unsigned integers.
#[derive(Clone, Copy)]
pub(super) struct Integer<const BITS: usize>;

impl<const BITS: usize> Code for Integer<BITS> {
    const EIGHT_SIZE_BYTES: usize = BITS;
    const VALUES: Option<&'static [f32; 16]> = match BITS {
        4 => Some(&FOUR_BITS),
        _ => None,
    };
    const IS_INTEGER: bool = BITS == 4 || BITS == 8;

    #[inline(always)]
    unsafe fn load<L: Lanes>(ptr: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_packed::<BITS>(ptr) }
    }
}

/// Floats of four bits.
#[derive(Clone, Copy)]
pub(super) struct E2m1;

impl Code for E2m1 {
    const EIGHT_SIZE_BYTES: usize = 4;
    const VALUES: Option<&'static [f32; 16]> = Some(&E2M1);

    #[inline(always)]
    unsafe fn load<L: Lanes>(ptr: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_e2m1(ptr) }
    }
}

/// Makes weights of the codes of one group and output.
#[derive(Clone, Copy)]
pub(super) struct Decoder<L, C> {
    scale: L,
    bias: L,
    code: PhantomData<C>,
}

impl<L: Lanes, C: Code> Decoder<L, C> {
    #[inline(always)]
    pub(super) fn new(scale: f32, bias: f32) -> Self {
        Self {
            scale: L::splat(scale),
            bias: L::splat(bias),
            code: PhantomData,
        }
    }

    /// # Safety
    /// Eight codes are readable at `codes`.
    #[inline(always)]
    pub(super) unsafe fn weights(self, codes: *const u8) -> L {
        // SAFETY: the caller's promise.
        unsafe { C::load::<L>(codes) }.mul_add(self.scale, self.bias)
    }
}
