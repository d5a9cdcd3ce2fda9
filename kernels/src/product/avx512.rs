//! Tiles of four registers of rows by six outputs in AVX-512's registers.
//!
//! [`Avx512`]: a register holds eight lanes of one row and eight of the next, and meets the weights
//! of one output twice side by side. So a sum has eight lanes here too, and its bits are those of
//! narrower registers. Bringing bf16 into that form is one shuffle, which costs nothing beside four
//! multiplications: such weights are read as they stand in memory, however many rows there are.
//!
//! [`Sixteen`]: a register holds sixteen lanes of one row, for weights that are quicker so where
//! they stream.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use std::arch::x86_64::{
    __m256, __m512, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_add_ps, _mm256_cvtph_ps,
    _mm256_loadu_ps, _mm256_mask_storeu_ps, _mm512_add_ps, _mm512_broadcast_f32x8,
    _mm512_broadcast_i32x4, _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_setzero_ps, _mm512_shuffle_epi8,
    _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
};

use half::{bf16, f16};

use super::{
    Span, Weight,
    eight::Eight,
    tile::{Tile, Tiles, WeightRows},
};
use crate::{
    dot::Rows,
    element::{Float, FloatType},
    simd::LANES,
};

/// Registers of rows.
const REGISTERS: usize = 4;
const OUTPUTS: usize = 6;

/// Floats of one register.
const WIDTH: usize = 16;

/// Steps between two requests for the next tile's weights: one cache line of bf16.
const STEPS_PER_REQUEST: usize = 4;

/// For CPUs with AVX-512 (F, BW, DQ, VL).
pub(crate) struct Avx512;

impl Avx512 {
    pub(crate) fn is_available() -> bool {
        std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
    }
}

impl Tiles for Avx512 {
    const LANES: usize = LANES;
    const ROWS: usize = 2 * REGISTERS;
    const OUTPUTS: usize = OUTPUTS;
    /// Operands come fast enough from the second-level cache, so only very long rows are cut.
    const MAX_STEPS: usize = 512;
    const READS_ROWS: bool = true;

    unsafe fn stream<W: Weight>(
        weight: W,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { Eight::stream(weight, x, outputs, out, out_stride) };
    }

    unsafe fn panel(tile: &Tile, panel: *const f32) {
        let weight = Weights {
            ptr: panel,
            output_stride: LANES,
            step_stride: OUTPUTS * LANES,
        };
        // SAFETY: the caller's promise.
        unsafe { outputs::<f32, OUTPUTS, false>(tile, weight, 0) }
    }

    unsafe fn rows<W: Float>(tile: &Tile, weight: WeightRows<W>, ahead: bool) {
        // SAFETY: the caller's promise; the pointer's type is the one that the constant names.
        unsafe {
            match W::TYPE {
                FloatType::F32 => rows::<f32>(tile, weight.ptr.cast(), weight.stride, ahead),
                FloatType::Bf16 => rows::<bf16>(tile, weight.ptr.cast(), weight.stride, ahead),
                FloatType::F16 => rows::<f16>(tile, weight.ptr.cast(), weight.stride, ahead),
            }
        }
    }
}

/// For the same CPUs, and weights that are [`Weight::IN_SIXTEEN_LANES`].
pub(super) struct Sixteen;

impl Tiles for Sixteen {
    const LANES: usize = WIDTH;
    const ROWS: usize = REGISTERS;
    const OUTPUTS: usize = OUTPUTS;
    /// 1024 inputs, whose rows stay in the first-level cache.
    const MAX_STEPS: usize = 64;
    const READS_ROWS: bool = false;

    unsafe fn stream<W: Weight>(
        weight: W,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { weight.stream_sixteen(x, outputs, out, out_stride) };
    }

    unsafe fn panel(tile: &Tile, panel: *const f32) {
        let weight = Weights {
            ptr: panel.cast::<__m512>(),
            output_stride: 1,
            step_stride: OUTPUTS,
        };
        // SAFETY: the caller's promise.
        unsafe { outputs::<__m512, OUTPUTS, false>(tile, weight, 0) }
    }

    unsafe fn rows<W: Float>(_: &Tile, _: WeightRows<W>, _: bool) {
        unreachable!("weights come from a panel")
    }
}

/// Where the weights of a tile are.
#[derive(Clone, Copy)]
struct Weights<W> {
    ptr: *const W,
    output_stride: usize,
    step_stride: usize,
}

/// # Safety
/// As [`Tiles::rows`].
unsafe fn rows<W: Operand>(tile: &Tile, ptr: *const W, stride: usize, ahead: bool) {
    let weight = Weights {
        ptr,
        output_stride: stride,
        step_stride: LANES,
    };
    // SAFETY: the caller's promise. Outputs of an incomplete tile go one by one.
    unsafe {
        match (tile.outputs == OUTPUTS, ahead) {
            (true, true) => outputs::<W, OUTPUTS, true>(tile, weight, 0),
            (true, false) => outputs::<W, OUTPUTS, false>(tile, weight, 0),
            (false, _) => {
                for output in 0..tile.outputs {
                    outputs::<W, 1, false>(tile, weight, output);
                }
            }
        }
    }
}

/// As many registers of rows as the tile has, by `O` outputs from `output` on.
///
/// # Safety
/// As [`Tiles::panel`], and [`Avx512::is_available`].
#[inline(always)]
unsafe fn outputs<W: Operand, const O: usize, const AHEAD: bool>(
    tile: &Tile,
    weight: Weights<W>,
    output: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.rows.div_ceil(W::ROWS) {
            1 => multiply::<W, 1, O, AHEAD>(tile, weight, output),
            2 => multiply::<W, 2, O, AHEAD>(tile, weight, output),
            3 => multiply::<W, 3, O, AHEAD>(tile, weight, output),
            _ => multiply::<W, REGISTERS, O, AHEAD>(tile, weight, output),
        }
    }
}

/// `P` registers of rows by `O` outputs from `output` on.
///
/// # Safety
/// As [`outputs`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn multiply<W: Operand, const P: usize, const O: usize, const AHEAD: bool>(
    tile: &Tile,
    weight: Weights<W>,
    output: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); O]; P];
    let stride = weight.output_stride;
    // SAFETY: the caller's promise. What is asked for ahead need not exist.
    unsafe {
        let kept = tile.kept.wrapping_add(output * WIDTH * P);
        if !tile.is_first {
            for (p, o) in places::<P, O>() {
                sums[p][o] = _mm512_loadu_ps(kept.add((p * O + o) * WIDTH));
            }
        }
        let (mut x, mut weights) = (tile.x, weight.ptr.add(output * stride));
        let mut step = 0;
        while step < tile.steps {
            if AHEAD {
                for o in 0..O {
                    let line = weights.wrapping_add((O + o) * stride);
                    _mm_prefetch::<_MM_HINT_T1>(line.cast());
                }
            }
            let steps = STEPS_PER_REQUEST.min(tile.steps - step);
            for _ in 0..steps {
                let mut rows = [_mm512_setzero_ps(); P];
                for p in 0..P {
                    rows[p] = _mm512_loadu_ps(x.add(p * WIDTH));
                }
                for o in 0..O {
                    let weight = W::load(weights.add(o * stride));
                    for p in 0..P {
                        sums[p][o] = _mm512_fmadd_ps(rows[p], weight, sums[p][o]);
                    }
                }
                x = x.add(REGISTERS * WIDTH);
                weights = weights.wrapping_add(weight.step_stride);
            }
            step += steps;
        }
        if tile.is_last {
            let columns = (output, tile.outputs.min(O));
            for p in 0..P {
                let [low, high] = lane_sums(&sums[p]);
                if W::ROWS == 2 {
                    write(low, tile, 2 * p, columns);
                    write(high, tile, 2 * p + 1, columns);
                } else {
                    write(_mm256_add_ps(low, high), tile, p, columns);
                }
            }
        } else {
            for (p, o) in places::<P, O>() {
                _mm512_storeu_ps(kept.add((p * O + o) * WIDTH), sums[p][o]);
            }
        }
    }
}

/// All sums of a tile.
#[inline(always)]
fn places<const P: usize, const O: usize>() -> impl Iterator<Item = (usize, usize)> {
    (0..P).flat_map(|p| (0..O).map(move |o| (p, o)))
}

/// The sums of up to eight registers: those of the lower halves, then those of the upper ones.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn lane_sums<const O: usize>(sums: &[__m512; O]) -> [__m256; 2] {
    let at = |o: usize| if o < O { sums[o] } else { _mm512_setzero_ps() };
    // Lanes i and i + 4, then i and i + 2, then both that are left, as `Lanes::sum` does.
    let fours = |a: __m512, b: __m512| {
        let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    let twos = |a: __m512, b: __m512| {
        let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
        _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b))
    };
    let even = twos(fours(at(0), at(4)), fours(at(1), at(5)));
    let odd = twos(fours(at(2), at(6)), fours(at(3), at(7)));
    let low = _mm512_shuffle_ps::<0b10_00_10_00>(even, odd);
    let all = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(even, odd));
    let all = _mm512_shuffle_f32x4::<0b11_01_10_00>(all, all);
    [
        _mm512_castps512_ps256(all),
        _mm512_extractf32x8_ps::<1>(all),
    ]
}

/// The sums of up to eight registers of [`Sixteen`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(crate) fn sixteen_sums<const O: usize>(sums: &[__m512; O]) -> __m256 {
    let [low, high] = lane_sums(sums);
    _mm256_add_ps(low, high)
}

/// Writes `count` results from `output` on of a row, if it exists.
///
/// # Safety
/// There is room for the results of the tile's rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn write(results: __m256, tile: &Tile, row: usize, (output, count): (usize, usize)) {
    if row < tile.rows {
        let mask = u8::MAX >> (8 - count);
        // SAFETY: the caller's promise.
        unsafe {
            let y = tile.y.add(row * tile.y_stride + output);
            _mm256_mask_storeu_ps(y, mask, results);
        }
    }
}

/// A type of weights that registers are filled with.
trait Operand: Copy {
    /// Rows that a register of rows holds.
    const ROWS: usize = 2;

    /// Eight weights as f32, twice side by side; for one row, sixteen.
    ///
    /// # Safety
    /// Eight elements are readable at `ptr`, and the CPU has what [`Avx512`] needs.
    unsafe fn load(ptr: *const Self) -> __m512;
}

/// Sixteen weights.
impl Operand for __m512 {
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn load(ptr: *const Self) -> __m512 {
        // SAFETY: the caller's promise, of one such element.
        unsafe { _mm512_loadu_ps(ptr.cast()) }
    }
}

impl Operand for f32 {
    #[inline(always)]
    unsafe fn load(ptr: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(ptr)) }
    }
}

impl Operand for f16 {
    #[inline(always)]
    unsafe fn load(ptr: *const Self) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_broadcast_f32x8(_mm256_cvtph_ps(_mm_loadu_si128(ptr.cast()))) }
    }
}

/// For each byte of a register, which of the sixteen bytes of eight bf16 it takes: a bf16 is the
/// upper half of its f32. The high bit stands for zero.
const WIDEN: [u8; 64] = {
    let mut from = [0x80; 64];
    let mut lane = 0;
    while lane < 16 {
        let byte = [0, 2, 4, 6, 8, 10, 12, 14][lane % 8];
        from[lane * 4 + 2] = byte;
        from[lane * 4 + 3] = byte + 1;
        lane += 1;
    }
    from
};

impl Operand for bf16 {
    #[inline(always)]
    unsafe fn load(ptr: *const Self) -> __m512 {
        // SAFETY: the caller's promise; the constant has 64 bytes.
        unsafe {
            let everywhere = _mm512_broadcast_i32x4(_mm_loadu_si128(ptr.cast()));
            let widen = _mm512_loadu_si512(WIDEN.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_shuffle_epi8(everywhere, widen))
        }
    }
}
