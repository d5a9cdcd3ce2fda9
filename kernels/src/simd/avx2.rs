//! Lanes of AVX2, FMA and F16C.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _MM_HINT_T0,
    _MM_HINT_T1, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_movehl_ps, _mm_prefetch, _mm_shuffle_ps, _mm_storeu_ps, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_castps_si256, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps,
    _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_or_ps,
    _mm256_permute2f128_ps, _mm256_permutevar8x32_ps, _mm256_round_ps, _mm256_set1_epi32,
    _mm256_set1_epi64x, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setr_epi64x, _mm256_shuffle_ps,
    _mm256_slli_epi32, _mm256_srlv_epi32, _mm256_srlv_epi64, _mm256_storeu_ps,
};

use half::{bf16, f16};

use super::{
    Lanes, Operation,
    packed::{E2M1, packed_word},
};

/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<O: Operation>(operation: O) -> O::Output {
    operation.run::<Avx2>()
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

/// Eight integers of `BITS` bits.
///
/// # Safety
/// `BITS` bytes are readable at `ptr`, and the CPU has AVX2.
#[inline(always)]
unsafe fn integers<const BITS: usize>(ptr: *const u8) -> __m256i {
    // SAFETY: the caller's promises.
    unsafe {
        if BITS == 8 {
            return _mm256_cvtepu8_epi32(_mm_loadl_epi64(ptr.cast::<__m128i>()));
        }
        let mask = _mm256_set1_epi32((1 << BITS) - 1);
        _mm256_and_si256(shifted::<BITS>(packed_word::<BITS>(ptr)), mask)
    }
}

/// The eight integers of a word in the lowest bits of eight lanes, with others' bits above them.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn shifted<const BITS: usize>(word: u64) -> __m256i {
    let b = i32::try_from(BITS).expect("at most eight");
    // SAFETY: the caller's promise.
    unsafe {
        if BITS <= 4 {
            let [b0, b1, b2, b3, ..] = word.to_le_bytes();
            let low = i32::from_le_bytes([b0, b1, b2, b3]);
            let shifts = _mm256_setr_epi32(0, b, 2 * b, 3 * b, 4 * b, 5 * b, 6 * b, 7 * b);
            return _mm256_srlv_epi32(_mm256_set1_epi32(low), shifts);
        }
        // Two lanes of 64 bits for each half of the result; the shuffle takes their lower halves.
        let b = i64::from(b);
        let word = _mm256_set1_epi64x(word.cast_signed());
        let first = _mm256_srlv_epi64(word, _mm256_setr_epi64x(0, b, 4 * b, 5 * b));
        let second = _mm256_srlv_epi64(word, _mm256_setr_epi64x(2 * b, 3 * b, 6 * b, 7 * b));
        _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(
            _mm256_castsi256_ps(first),
            _mm256_castsi256_ps(second),
        ))
    }
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(ptr: *const f32) -> Self {
        // SAFETY: the caller's promise, and `run` has the features.
        Self(unsafe { _mm256_loadu_ps(ptr) })
    }
    #[inline(always)]
    unsafe fn load_bf16(ptr: *const bf16) -> Self {
        // SAFETY: the caller's promise, and `run` has the features.
        Self(unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast::<__m128i>()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        })
    }
    #[inline(always)]
    unsafe fn load_f16(ptr: *const f16) -> Self {
        // SAFETY: the caller's promise, and `run` has the features.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast::<__m128i>())) })
    }
    #[inline(always)]
    unsafe fn load_packed<const BITS: usize>(ptr: *const u8) -> Self {
        // SAFETY: the caller's promise, and `run` has the features.
        Self(unsafe { _mm256_cvtepi32_ps(integers::<BITS>(ptr)) })
    }
    #[inline(always)]
    unsafe fn load_e2m1(ptr: *const u8) -> Self {
        // SAFETY: the caller's promise, and `run` has the features.
        Self(unsafe {
            let codes = shifted::<4>(packed_word::<4>(ptr));
            // The permutation looks at three bits only, the fourth is the sign.
            let magnitudes = _mm256_permutevar8x32_ps(_mm256_loadu_ps(E2M1.as_ptr()), codes);
            let sign =
                _mm256_and_si256(_mm256_slli_epi32::<28>(codes), _mm256_set1_epi32(i32::MIN));
            _mm256_or_ps(magnitudes, _mm256_castsi256_ps(sign))
        })
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32) {
        // SAFETY: the caller's promise, and `run` has the features.
        unsafe { _mm256_storeu_ps(ptr, self.0) }
    }
    #[inline(always)]
    fn prefetch<T>(ptr: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr.cast()) }
    }
    #[inline(always)]
    fn prefetch_later<T>(ptr: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ptr.cast()) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: `run` has the features.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: `run` has the features.
        unsafe {
            let high = _mm256_extractf128_ps::<1>(self.0);
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    /// Adds lanes i and i + 4 of two vectors at once, then i and i + 2 of all, then the last two.
    #[inline(always)]
    fn sum_four([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        let mut sums = [0.0; 4];
        // SAFETY: `run` has the features; the array has four elements.
        unsafe {
            let fours = |a, b| {
                let low = _mm256_permute2f128_ps::<0x20>(a, b);
                _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b))
            };
            let (ab, cd) = (fours(a.0, b.0), fours(c.0, d.0));
            let low = _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd);
            let twos = _mm256_add_ps(low, _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd));
            // [a, a, c, c] and [b, b, d, d]
            let ac = _mm256_castps256_ps128(twos);
            let bd = _mm256_extractf128_ps::<1>(twos);
            let low = _mm_shuffle_ps::<0b10_00_10_00>(ac, bd);
            let acbd = _mm_add_ps(low, _mm_shuffle_ps::<0b11_01_11_01>(ac, bd));
            _mm_storeu_ps(
                sums.as_mut_ptr(),
                _mm_shuffle_ps::<0b11_01_10_00>(acbd, acbd),
            );
        }
        sums
    }

    /// 2^n * e^r with n = round(x / ln 2) and a polynomial for e^r (Cephes `expf`).
    #[inline(always)]
    fn exp(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        const POLYNOMIAL: [f32; 5] = [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ];
        // SAFETY: `run` has the features.
        Self(unsafe {
            // The bounds come first, so that a NaN passes through min and max.
            let x = _mm256_min_ps(_mm256_set1_ps(88.376_26), self.0);
            let x = _mm256_max_ps(_mm256_set1_ps(-87.336_54), x);
            let n = _mm256_round_ps::<NEAREST>(_mm256_mul_ps(
                x,
                _mm256_set1_ps(std::f32::consts::LOG2_E),
            ));
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
            let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
            let mut p = _mm256_set1_ps(1.987_569_2e-4);
            for coefficient in POLYNOMIAL {
                p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(coefficient));
            }
            let p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r);
            let p = _mm256_add_ps(p, _mm256_set1_ps(1.0));
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        })
    }
}
