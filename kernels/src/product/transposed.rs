//! Sixteen registers turned.

use std::arch::x86_64::{
    __m512, _mm512_castpd_ps, _mm512_castps_pd, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

/// Sixteen rows of sixteen as columns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transposed(rows: [__m512; 16]) -> [__m512; 16] {
    let zero = [_mm512_setzero_ps(); 16];
    let (mut pairs, mut fours, mut eights, mut all) = (zero, zero, zero, zero);
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let wide = |x: __m512| _mm512_castps_pd(x);
    for i in (0..16).step_by(4) {
        for half in 0..2 {
            let (a, b) = (wide(pairs[i + half]), wide(pairs[i + half + 2]));
            fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    // `fours[4 q + c]`: column `c` of each quarter, of the rows from `4 q` on.
    for c in 0..4 {
        for q in 0..2 {
            let (a, b) = (fours[8 * q + c], fours[8 * q + 4 + c]);
            eights[8 * q + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            eights[8 * q + 4 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        }
    }
    // `eights[8 q + c]`: columns `c` and `c + 8`; `eights[8 q + 4 + c]`: `c + 4` and `c + 12`.
    for c in 0..4 {
        for half in 0..2 {
            let (a, b) = (eights[4 * half + c], eights[8 + 4 * half + c]);
            all[4 * half + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
            all[8 + 4 * half + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b);
        }
    }
    all
}
