//! A quantised matrix as the weights of a product.
//!
//! # Invariants
//! Where products are not computed in integers (`src/product/integer.rs`), a weight is always
//! `code * scale + bias`, rounded once, and products are added in the order of `dot.rs`, or in sixteen
//! lanes (`sixteen.rs`): few rows and many give the same bits.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

#[cfg(target_arch = "x86_64")]
mod sixteen;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use std::marker::PhantomData;

use half::{bf16, f16};

use super::code::{Code, Decoder};
#[cfg(target_arch = "x86_64")]
use crate::product::{Codes, Coding, PAIR_OUTPUTS, SixteenGroups};
use crate::{
    dot::Rows,
    element::{Float, FloatType},
    node::View,
    product::{Span, Weight},
    simd::{LANES, Lanes, load_partial},
};

/// Smallest group, and divisor of all others.
const SMALLEST_GROUP: usize = 32;

/// What the weights of a group share: one list each, `[outputs, groups]`.
#[derive(Clone, Copy)]
pub(super) enum Shared<'a> {
    F32(&'a [f32], &'a [f32]),
    Bf16(&'a [bf16], &'a [bf16]),
    F16(&'a [f16], &'a [f16]),
    /// Powers of two, without biases.
    E8m0(&'a [u8]),
}

impl<'a> Shared<'a> {
    /// `scales` and, for a type, `biases` as floats of that type.
    pub(super) fn new(float_type: Option<FloatType>, parts: &'a [View<'a>]) -> Self {
        match float_type {
            None => Self::E8m0(parts[0].as_slice()),
            Some(FloatType::F32) => Self::F32(parts[0].as_slice(), parts[1].as_slice()),
            Some(FloatType::Bf16) => Self::Bf16(parts[0].as_slice(), parts[1].as_slice()),
            Some(FloatType::F16) => Self::F16(parts[0].as_slice(), parts[1].as_slice()),
        }
    }

    fn check(self, len: usize) {
        let lens = match self {
            Self::F32(scales, biases) => [scales.len(), biases.len()],
            Self::Bf16(scales, biases) => [scales.len(), biases.len()],
            Self::F16(scales, biases) => [scales.len(), biases.len()],
            Self::E8m0(scales) => [scales.len(), len],
        };
        assert!(lens == [len, len]);
    }

    /// Writes those of up to eight groups from `first` on; more are undefined.
    ///
    /// They go where they are read from: a copy would wait for the stores before it.
    #[inline(always)]
    fn load<L: Lanes>(self, first: usize, count: usize, to: &mut Groups) {
        let Groups { scales, biases } = to;
        match self {
            Self::F32(from, offsets) => {
                floats::<L, f32>(from, first, count, scales);
                floats::<L, f32>(offsets, first, count, biases);
            }
            Self::Bf16(from, offsets) => {
                floats::<L, bf16>(from, first, count, scales);
                floats::<L, bf16>(offsets, first, count, biases);
            }
            Self::F16(from, offsets) => {
                floats::<L, f16>(from, first, count, scales);
                floats::<L, f16>(offsets, first, count, biases);
            }
            Self::E8m0(exponents) => powers(exponents, first, count, scales),
        }
    }
}

/// Scales and biases of eight groups.
#[derive(Clone, Copy, Default)]
struct Groups {
    scales: [f32; LANES],
    biases: [f32; LANES],
}

#[inline(always)]
fn floats<L: Lanes, T: Float>(values: &[T], first: usize, count: usize, to: &mut [f32; LANES]) {
    let values = &values[first..];
    assert!(count <= values.len());
    // Those of the next output do no harm; a full vector is much faster.
    // SAFETY: eight elements are read, or fewer that are all there; there is room for eight.
    unsafe {
        if values.len() >= LANES {
            T::load::<L>(values.as_ptr()).store(to.as_mut_ptr());
        } else {
            load_partial::<L, T>(values.as_ptr(), values.len()).store(to.as_mut_ptr());
        }
    }
}

/// 2^(e - 127). Zero is 2^-127, below the smallest normal number; 255 is NaN, as the format says.
#[inline(always)]
fn powers(exponents: &[u8], first: usize, count: usize, to: &mut [f32; LANES]) {
    for (power, &exponent) in to.iter_mut().zip(&exponents[first..][..count]) {
        *power = match exponent {
            0 => f32::from_bits(1 << 22),
            255 => f32::NAN,
            _ => f32::from_bits(u32::from(exponent) << 23),
        };
    }
}

/// `[outputs, inputs]` as codes and what groups of them share.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a, C> {
    codes: &'a [u8],
    shared: Shared<'a>,
    inputs: usize,
    group_size: usize,
    code: PhantomData<C>,
}

impl<'a, C: Code> Packed<'a, C> {
    /// # Panics
    /// If the parts do not have the lengths of an `[outputs, inputs]` matrix.
    pub(super) fn new(
        (codes, shared): (&'a [u8], Shared<'a>),
        (outputs, inputs): (usize, usize),
        group_size: usize,
    ) -> Self {
        assert!(group_size.is_multiple_of(SMALLEST_GROUP));
        assert!(inputs.is_multiple_of(group_size));
        assert!(codes.len() == outputs * (inputs / LANES * C::EIGHT_SIZE_BYTES));
        shared.check(outputs * (inputs / group_size));
        Self {
            codes,
            shared,
            inputs,
            group_size,
            code: PhantomData,
        }
    }

    /// Address of the code of input `input`, a multiple of eight.
    #[inline(always)]
    fn code(self, output: usize, input: usize) -> *const u8 {
        let row_size_bytes = self.inputs / LANES * C::EIGHT_SIZE_BYTES;
        let at = output * row_size_bytes + input / LANES * C::EIGHT_SIZE_BYTES;
        debug_assert!(at <= self.codes.len());
        self.codes.as_ptr().wrapping_add(at)
    }

    /// The first `R` rows of `x` with all `outputs`. Returns `R`.
    ///
    /// # Safety
    /// As [`Weight::stream`], and `x` has `R` rows.
    #[inline(always)]
    unsafe fn band<L: Lanes, const R: usize, const O: usize>(
        self,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) -> usize {
        let mut done = 0;
        // SAFETY: outputs of the span; each result has its place.
        unsafe {
            while done + O <= outputs.len {
                let sums = self.tile::<L, R, O>(x, outputs.first + done);
                for r in 0..R {
                    for o in 0..O {
                        *out.add(r * out_stride + done + o) = sums[r][o].sum();
                    }
                }
                done += O;
            }
            while done < outputs.len {
                let sums = self.tile::<L, R, 1>(x, outputs.first + done);
                for r in 0..R {
                    *out.add(r * out_stride + done) = sums[r][0].sum();
                }
                done += 1;
            }
        }
        R
    }

    /// Products of `R` rows with `O` outputs from `first` on. The next `O` are asked for meanwhile:
    /// their rows are too short for the CPU to foresee.
    ///
    /// # Safety
    /// The rows and outputs exist.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const R: usize, const O: usize>(
        self,
        x: Rows<f32>,
        first: usize,
    ) -> [[L; O]; R] {
        let mut sums = [[L::splat(0.0); O]; R];
        // Loops fill these: of a closure the compiler may make a function without the CPU's features.
        let mut shared = [Groups::default(); O];
        let mut decoders = [Decoder::<L, C>::new(0.0, 0.0); O];
        let mut codes = [self.codes.as_ptr(); O];
        let mut weights = [L::splat(0.0); O];
        let num_groups = self.inputs / self.group_size;
        let row_size_bytes = self.output_size_bytes();
        let mut group = 0;
        while group < num_groups {
            let count = LANES.min(num_groups - group);
            for o in 0..O {
                let place = (first + o) * num_groups + group;
                self.shared.load::<L>(place, count, &mut shared[o]);
            }
            for index in 0..count {
                let input = (group + index) * self.group_size;
                for o in 0..O {
                    decoders[o] = Decoder::new(shared[o].scales[index], shared[o].biases[index]);
                    codes[o] = self.code(first + o, input);
                }
                let eights = self.group_size / LANES;
                let mut eight = 0;
                while eight < eights {
                    for o in 0..O {
                        let ahead = codes[o].wrapping_add(eight * C::EIGHT_SIZE_BYTES);
                        L::prefetch_later(ahead.wrapping_add(O * row_size_bytes));
                    }
                    for _ in 0..SMALLEST_GROUP / LANES {
                        for o in 0..O {
                            let codes = codes[o].wrapping_add(eight * C::EIGHT_SIZE_BYTES);
                            // SAFETY: within the group.
                            weights[o] = unsafe { decoders[o].weights(codes) };
                        }
                        for r in 0..R {
                            // SAFETY: a row of `x` has all inputs.
                            let x =
                                unsafe { L::load(x.ptr.add(r * x.stride + input + eight * LANES)) };
                            for o in 0..O {
                                sums[r][o] = weights[o].mul_add(x, sums[r][o]);
                            }
                        }
                        eight += 1;
                    }
                }
            }
            group += count;
        }
        sums
    }
}

impl<C: Code> Weight for Packed<'_, C> {
    const IN_SIXTEEN_LANES: bool = C::VALUES.is_some();

    fn output_size_bytes(&self) -> usize {
        self.inputs / LANES * C::EIGHT_SIZE_BYTES
    }

    #[inline(always)]
    unsafe fn stream<L: Lanes>(
        self,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        let mut row = 0;
        while row < x.count {
            // SAFETY: `row` is a row, and each band gets as many as it takes.
            unsafe {
                let rows = x.from(row);
                let out = out.add(row * out_stride);
                row += match rows.count {
                    1 => self.band::<L, 1, 4>(rows, outputs, out, out_stride),
                    2 => self.band::<L, 2, 2>(rows, outputs, out, out_stride),
                    3 => self.band::<L, 3, 2>(rows, outputs, out, out_stride),
                    4..8 => self.band::<L, 4, 2>(rows, outputs, out, out_stride),
                    _ => self.band::<L, 8, 1>(rows, outputs, out, out_stride),
                };
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_sixteen(self, x: Rows<f32>, outputs: Span, out: *mut f32, out_stride: usize) {
        // SAFETY: the caller's promises.
        unsafe { sixteen::stream(self, x, outputs, out, out_stride) };
    }

    const IS_INTEGER: bool = C::IS_INTEGER;

    #[cfg(target_arch = "x86_64")]
    fn codes(&self, output: usize) -> Codes {
        Codes {
            ptr: self.code(output, 0),
            row_size_bytes: self.output_size_bytes(),
            coding: Coding {
                bits: C::EIGHT_SIZE_BYTES,
                group_size: self.group_size,
            },
        }
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn shared(&self, output: usize, groups: Span, to: &mut SixteenGroups) {
        let num_groups = self.inputs / self.group_size;
        let first = output * num_groups + groups.first;
        self.shared.prefetch(first + PAIR_OUTPUTS * num_groups);
        // SAFETY: the caller's promise.
        unsafe { self.shared.load_sixteen(first, groups.len, to) };
    }

    #[inline(always)]
    unsafe fn convert<L: Lanes>(
        self,
        output: usize,
        inputs: Span,
        to: *mut f32,
        strides: [usize; 2],
    ) {
        debug_assert!(inputs.len.is_multiple_of(2 * LANES));
        let num_groups = self.inputs / self.group_size;
        let end = inputs.first + inputs.len;
        let (mut input, mut to) = (inputs.first, to);
        let mut shared = Groups::default();
        while input < end {
            let group = input / self.group_size;
            let count = LANES.min(num_groups - group);
            self.shared
                .load::<L>(output * num_groups + group, count, &mut shared);
            for index in 0..count {
                let decoder = Decoder::<L, C>::new(shared.scales[index], shared.biases[index]);
                let group_end = ((group + index + 1) * self.group_size).min(end);
                while input < group_end {
                    for stride in strides {
                        // SAFETY: an input of the piece; the caller has room for its eight.
                        unsafe {
                            decoder.weights(self.code(output, input)).store(to);
                        }
                        to = to.wrapping_add(stride);
                        input += LANES;
                    }
                }
            }
        }
    }
}

/// Runs the body once, with `$C` standing for the codes of `$format`.
macro_rules! with_code {
    ($format:expr, $C:ident => $body:expr) => {
        match $format {
            QuantizedFormat::Mxfp4 => {
                type $C = $crate::quantized_linear::code::E2m1;
                $body
            }
            QuantizedFormat::Affine { bits: 2, .. } => {
                type $C = $crate::quantized_linear::code::Integer<2>;
                $body
            }
            QuantizedFormat::Affine { bits: 3, .. } => {
                type $C = $crate::quantized_linear::code::Integer<3>;
                $body
            }
            QuantizedFormat::Affine { bits: 4, .. } => {
                type $C = $crate::quantized_linear::code::Integer<4>;
                $body
            }
            QuantizedFormat::Affine { bits: 5, .. } => {
                type $C = $crate::quantized_linear::code::Integer<5>;
                $body
            }
            QuantizedFormat::Affine { bits: 6, .. } => {
                type $C = $crate::quantized_linear::code::Integer<6>;
                $body
            }
            QuantizedFormat::Affine { .. } => {
                type $C = $crate::quantized_linear::code::Integer<8>;
                $body
            }
        }
    };
}
pub(super) use with_code;
