//! Rows of f32 as columns of bf16.
//!
//! An f32 has 24 significant bits, a bf16 has eight: the first eight, the next eight and the last
//! eight are three bf16 whose sum it is. (Parts below 2^-126 are lost: the unit takes them for zero.)

use std::arch::x86_64::{
    __m512, __m512bh, _CMP_LT_OQ, _CMP_UNORD_Q, _mm512_abs_ps, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtne2ps_pbh,
    _mm512_mask_or_epi32, _mm512_maskz_loadu_ps, _mm512_maskz_sub_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::{COLUMNS, INPUTS, Line, PARTS, Panel};
use crate::product::transposed::transposed;

/// Floats of one register.
const WIDTH: usize = 16;

/// A panel is `[steps, tiles, 16 pairs of inputs, columns]` pairs of bf16.
impl Panel {
    /// All parts of all rows are columns of one tile; else each part has a tile.
    pub(super) fn is_one_tile(&self) -> bool {
        self.rows * PARTS <= COLUMNS
    }

    pub(super) fn num_tiles(&self) -> usize {
        if self.is_one_tile() { 1 } else { PARTS }
    }

    /// Columns of a tile.
    pub(super) fn columns(&self) -> usize {
        self.rows * PARTS / self.num_tiles()
    }
}

/// Fills one panel.
pub(super) struct PackPanel<'a> {
    /// From the panel's first row on.
    pub(super) x: &'a [f32],
    pub(super) inputs: usize,
    pub(super) panel: Panel,
    pub(super) to: &'a mut [Line],
}

impl PackPanel<'_> {
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ and BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
    pub(super) fn run(self) {
        let Self {
            inputs,
            panel: Panel { rows, .. },
            ..
        } = self;
        assert!(rows * inputs <= self.x.len());
        let (num_tiles, columns) = (self.panel.num_tiles(), self.panel.columns());
        let steps = self.to.chunks_exact_mut(PARTS * rows);
        for (step, to) in steps.enumerate() {
            let first = step * INPUTS;
            let len = INPUTS.min(inputs - first);
            let row = |row: usize| parts(&self.x[row * inputs + first..][..len]);
            if columns == COLUMNS && num_tiles == PARTS {
                let mut tiles = [[_mm512_setzero_ps(); COLUMNS]; PARTS];
                for column in 0..COLUMNS {
                    for (tile, part) in tiles.iter_mut().zip(row(column)) {
                        tile[column] = part;
                    }
                }
                for (part, tile) in tiles.into_iter().enumerate() {
                    let lines = transposed(tile);
                    for (line, value) in to[part * COLUMNS..].iter_mut().zip(lines) {
                        // SAFETY: a line has sixteen elements.
                        unsafe { _mm512_storeu_ps(line.0.as_mut_ptr().cast(), value) };
                    }
                }
                continue;
            }
            let to = to.as_mut_ptr().cast::<u32>();
            for index in 0..rows {
                for (part, value) in row(index).into_iter().enumerate() {
                    let mut pairs = Line::ZERO;
                    // SAFETY: a line has sixteen elements.
                    unsafe { _mm512_storeu_ps(pairs.0.as_mut_ptr().cast(), value) };
                    let (tile, column) = match num_tiles {
                        1 => (0, part * rows + index),
                        _ => (part, index),
                    };
                    let to = to.wrapping_add(tile * WIDTH * columns + column);
                    for (pair, value) in pairs.0.into_iter().enumerate() {
                        // SAFETY: within the lines of this step.
                        unsafe { *to.add(pair * columns) = value };
                    }
                }
            }
        }
    }
}

/// Up to 32 inputs, filled up with zeros, as sixteen pairs of each part.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
fn parts(x: &[f32]) -> [__m512; PARTS] {
    let [low, high] = [0, WIDTH].map(|first| {
        let count = x.len().saturating_sub(first).min(WIDTH);
        let mask = u16::try_from((1_u32 << count) - 1).expect("sixteen bits");
        // SAFETY: as many elements as the mask has bits.
        split(unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(first)) })
    });
    std::array::from_fn(|part| {
        let pairs = _mm512_cvtne2ps_pbh(high[part], low[part]);
        // SAFETY: the same bits.
        unsafe { std::mem::transmute::<__m512bh, __m512>(pairs) }
    })
}

/// Three numbers of eight significant bits whose sum is `x`. The first is infinite or NaN where `x`
/// is, and the others are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
fn split(x: __m512) -> [__m512; PARTS] {
    let upper = |x: __m512| {
        let mask = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        _mm512_and_si512(_mm512_castps_si512(x), mask)
    };
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let is_finite =
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::INFINITY));
    // A NaN whose upper bits are those of infinity stays one.
    let quiet = _mm512_set1_epi32(0x0040_0000);
    let first = upper(x);
    let first = _mm512_castsi512_ps(_mm512_mask_or_epi32(first, is_nan, first, quiet));
    let rest = _mm512_maskz_sub_ps(is_finite, x, first);
    let second = _mm512_castsi512_ps(upper(rest));
    [first, second, _mm512_sub_ps(rest, second)]
}
