//! From tiles of sums to results.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_i32gather_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_setzero_ps,
};

use super::{
    super::amx::{COLUMNS, OUTPUTS},
    PARTS, SUMS_LEN,
};
use crate::product::transposed::transposed;

/// Adds the parts of one tile of outputs and writes the results.
pub(super) struct Write {
    /// `[tiles, 16 outputs, 16 columns]`
    pub(super) sums: *const f32,
    pub(super) rows: usize,
    pub(super) is_one_tile: bool,
    pub(super) outputs: usize,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

impl Write {
    /// # Safety
    /// `sums` holds the tiles, `y` has room for the results, and the CPU has AVX-512 F.
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn run(self) {
        let mask = u16::MAX >> (OUTPUTS - self.outputs);
        // SAFETY: the caller's promise.
        unsafe {
            if self.is_one_tile {
                for row in 0..self.rows {
                    let part = |part: usize| column(self.sums.add(part * self.rows + row));
                    let sum = _mm512_add_ps(_mm512_add_ps(part(0), part(1)), part(2));
                    _mm512_mask_storeu_ps(self.y.add(row * self.y_stride), mask, sum);
                }
                return;
            }
            let mut all = [_mm512_setzero_ps(); OUTPUTS];
            for (output, sum) in all.iter_mut().enumerate() {
                let part = |part: usize| {
                    _mm512_loadu_ps(self.sums.add(part * SUMS_LEN + output * COLUMNS))
                };
                *sum = _mm512_add_ps(_mm512_add_ps(part(0), part(1)), part(PARTS - 1));
            }
            for (row, results) in transposed(all).into_iter().enumerate().take(self.rows) {
                _mm512_mask_storeu_ps(self.y.add(row * self.y_stride), mask, results);
            }
        }
    }
}

/// A column of a tile of sums.
///
/// # Safety
/// `top` is in the first row of a whole tile.
#[target_feature(enable = "avx512f")]
unsafe fn column(top: *const f32) -> __m512 {
    const ROWS: [i32; 16] = [
        0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240,
    ];
    // SAFETY: sixteen indices, and the caller's promise.
    unsafe {
        let rows: __m512i = _mm512_loadu_si512(ROWS.as_ptr().cast());
        _mm512_i32gather_ps::<4>(rows, top)
    }
}
