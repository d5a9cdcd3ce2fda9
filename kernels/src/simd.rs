//! Eight f32 lanes: AVX2 where the CPU has it, plain arrays elsewhere (NEON by the compiler).
//!
//! Kernels are written once, generic over [`Lanes`], as an [`Operation`]; [`vectorized`] runs it
//! with the best lanes of this CPU. Everything below an operation is `#[inline(always)]`, so that
//! it is compiled with the CPU features of the entry point.
//!
//! # Invariants
//! A sum over an axis is always taken in the same order, whatever else is computed with it:
//! element `i` goes to lane `i % 8`, in ascending `i`, and [`Lanes::sum`] adds the lanes.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
mod packed;

use half::{bf16, f16};

pub(crate) use self::packed::E2M1;
use self::packed::unpack;

/// Number of f32 values in a [`Lanes`].
pub(crate) const LANES: usize = 8;

/// Eight f32 values.
///
/// Methods are safe to name but must only run inside [`vectorized`]: it has checked the CPU.
pub(crate) trait Lanes: Copy {
    /// All lanes `value`.
    fn splat(value: f32) -> Self;

    /// # Safety
    /// Eight elements are readable at `ptr`.
    unsafe fn load(ptr: *const f32) -> Self;

    /// # Safety
    /// Eight elements are readable at `ptr`.
    unsafe fn load_bf16(ptr: *const bf16) -> Self;

    /// # Safety
    /// Eight elements are readable at `ptr`.
    unsafe fn load_f16(ptr: *const f16) -> Self;

    /// Eight unsigned integers of `BITS` bits (at most 8), one after the other from the lowest bit
    /// on, as MLX packs them.
    ///
    /// # Safety
    /// `BITS` bytes are readable at `ptr`.
    #[inline(always)]
    unsafe fn load_packed<const BITS: usize>(ptr: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let integers = unsafe { unpack::<BITS>(ptr) };
        // SAFETY: the array has eight elements.
        unsafe { Self::load(integers.map(f32::from).as_ptr()) }
    }

    /// Eight values of the 4-bit floating-point format E2M1, the first in the lowest bits.
    ///
    /// # Safety
    /// Four bytes are readable at `ptr`.
    #[inline(always)]
    unsafe fn load_e2m1(ptr: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let codes = unsafe { unpack::<4>(ptr) };
        // SAFETY: the array has eight elements.
        unsafe { Self::load(codes.map(|code| E2M1[usize::from(code)]).as_ptr()) }
    }

    /// # Safety
    /// Eight elements are writable at `ptr`.
    unsafe fn store(self, ptr: *mut f32);

    /// Asks for the cache line at `ptr`, which need not be mapped. Does nothing where it cannot.
    #[inline(always)]
    fn prefetch<T>(_ptr: *const T) {}

    /// As [`Self::prefetch`], for a line that is needed later: it waits in the second-level cache.
    #[inline(always)]
    fn prefetch_later<T>(_ptr: *const T) {}

    fn add(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;

    /// `self * factor + addend`, rounded once where the CPU can.
    fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// e to the lane, within 2 ulp. NaN stays NaN; below -87.3 it is 1e-38 or less, not always 0.
    fn exp(self) -> Self;

    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array has eight elements.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// Sum of the lanes, as a tree.
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.to_array();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    /// [`Self::sum`] of each.
    #[inline(always)]
    fn sum_four(all: [Self; 4]) -> [f32; 4] {
        all.map(Self::sum)
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.to_array();
        a.max(e).max(c.max(g)).max(b.max(f).max(d.max(h)))
    }
}

/// Work that is generic over the lanes it runs on.
pub(crate) trait Operation {
    /// What it gives.
    type Output;

    /// Does the work. Mark it `#[inline(always)]`.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `operation` with the best lanes of this CPU.
#[inline]
pub(crate) fn vectorized<O: Operation>(operation: O) -> O::Output {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c")
    {
        // SAFETY: the CPU has the features.
        return unsafe { avx2::run(operation) };
    }
    operation.run::<Portable>()
}

/// The first `count` values at `ptr`, and zeros.
///
/// # Safety
/// `count` elements, at most eight, are readable at `ptr`.
#[inline(always)]
pub(crate) unsafe fn load_partial<L: Lanes, T: crate::element::Float>(
    ptr: *const T,
    count: usize,
) -> L {
    debug_assert!(count <= LANES);
    let mut lanes = [0.0f32; LANES];
    for (i, lane) in lanes.iter_mut().enumerate().take(count) {
        // SAFETY: `i < count`.
        *lane = unsafe { *ptr.add(i) }.to_f32();
    }
    // SAFETY: the array has eight elements.
    unsafe { L::load(lanes.as_ptr()) }
}

/// Lanes for any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            lanes[i] = f(self.0[i], other.0[i]);
        }
        Self(lanes)
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> Self {
        // SAFETY: the caller's promise; an array has its element's alignment.
        Self(unsafe { *ptr.cast() })
    }
    #[inline(always)]
    unsafe fn load_bf16(ptr: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        let bits: [u16; LANES] = unsafe { *ptr.cast() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(ptr: *const f16) -> Self {
        // SAFETY: the caller's promise.
        let halves: [f16; LANES] = unsafe { *ptr.cast() };
        Self(halves.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *ptr.cast() = self.0 };
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, f32::max)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        let mut lanes = [0.0; LANES];
        for i in 0..LANES {
            // A fused instruction on AArch64; elsewhere it would be a slow library call.
            lanes[i] = if cfg!(target_arch = "aarch64") {
                self.0[i].mul_add(factor.0[i], addend.0[i])
            } else {
                self.0[i] * factor.0[i] + addend.0[i]
            };
        }
        Self(lanes)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        Self(self.0.map(f32::exp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Float;

    /// Everything that lanes can do, on the same numbers.
    struct Everything<'a>(&'a [f32; LANES], &'a [f32; LANES]);

    impl Operation for Everything<'_> {
        type Output = Vec<f32>;

        #[inline(always)]
        fn run<L: Lanes>(self) -> Vec<f32> {
            // SAFETY: eight elements everywhere, and the operation runs where the lanes may.
            let (a, b, brain, half, part) = unsafe {
                let brain = self.1.map(bf16::from_f32);
                let half = self.1.map(f16::from_f32);
                (
                    L::load(self.0.as_ptr()),
                    L::load(self.1.as_ptr()),
                    bf16::load::<L>(brain.as_ptr()),
                    f16::load::<L>(half.as_ptr()),
                    load_partial::<L, f32>(self.0.as_ptr(), 5),
                )
            };
            let [w, x, y, z] = L::sum_four([a, b, part, brain]);
            let sums = [a.sum(), b.max_lane(), part.sum(), w, x, y, z];
            [
                a.add(b),
                a.mul(b),
                a.div(b),
                a.max(b),
                a.mul_add(L::splat(3.0), b),
                a.exp(),
                brain,
                half,
                part,
            ]
            .iter()
            .flat_map(|lanes| lanes.to_array())
            .chain(sums)
            .collect()
        }
    }

    #[test]
    fn portable_lanes_compute_what_the_best_lanes_do() {
        let a = [0.5, -1.25, 3.0, 1e-3, -7.5, 80.0, -80.0, 2.0];
        let b = [1.5, 1e-7, -3.0, 65000.0, 0.3, -0.1, 12.0, -2.5];
        let best = vectorized(Everything(&a, &b));
        let portable = Everything(&a, &b).run::<Portable>();
        for (i, (best, portable)) in best.iter().zip(&portable).enumerate() {
            let difference = (best - portable).abs();
            assert!(
                difference <= portable.abs() * 4e-7,
                "result {i} is {best}, and portably {portable}"
            );
        }
    }

    struct Exp([f32; LANES]);

    impl Operation for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<L: Lanes>(self) -> [f32; LANES] {
            // SAFETY: the array has eight elements.
            unsafe { L::load(self.0.as_ptr()) }.exp().to_array()
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let mut x = -87.3f32;
        while x < 88.3 {
            let actual = f64::from(vectorized(Exp([x; LANES]))[3]);
            let exact = f64::from(x).exp();
            assert!(
                (actual - exact).abs() <= exact * 2.4e-7,
                "exp({x}) is {actual}"
            );
            x += 0.00731;
        }
        let special = [
            f32::NAN,
            f32::NEG_INFINITY,
            -100.0,
            0.0,
            -0.0,
            88.37,
            -87.34,
            1e-30,
        ];
        let exp = vectorized(Exp(special));
        assert!(exp[0].is_nan());
        assert!(exp[1] <= 1.2e-38 && exp[2] <= 1.2e-38);
        assert_eq!(exp[3..5], [1.0, 1.0]);
    }
}
