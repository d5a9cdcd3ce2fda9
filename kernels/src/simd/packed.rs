//! Small integers and floats as quantised weights pack them, for any CPU.

use super::LANES;

/// The values of E2M1: sign, two bits of exponent, one of mantissa.
pub(crate) const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// `BITS` bytes as the lowest of a word.
///
/// # Safety
/// `BITS` bytes, at most eight, are readable at `ptr`.
#[inline(always)]
pub(super) unsafe fn packed_word<const BITS: usize>(ptr: *const u8) -> u64 {
    const { assert!(1 <= BITS && BITS <= 8) };
    let mut bytes = [0; 8];
    // SAFETY: the caller's promise, and `BITS` is at most eight.
    unsafe { std::ptr::copy_nonoverlapping(ptr, bytes.as_mut_ptr(), BITS) };
    u64::from_le_bytes(bytes)
}

/// Eight integers of `BITS` bits.
///
/// # Safety
/// As [`packed_word`].
#[inline(always)]
pub(super) unsafe fn unpack<const BITS: usize>(ptr: *const u8) -> [u8; LANES] {
    // SAFETY: the caller's promise.
    let word = unsafe { packed_word::<BITS>(ptr) };
    let mask = 0xff_u8 >> (8 - BITS);
    std::array::from_fn(|i| (word >> (BITS * i)).to_le_bytes()[0] & mask)
}

#[cfg(test)]
mod tests {
    use super::super::{Lanes, Operation, Portable, vectorized};
    use super::*;

    struct Packed<'a, const BITS: usize>(&'a [u8; 8]);

    impl<const BITS: usize> Operation for Packed<'_, BITS> {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<L: Lanes>(self) -> [f32; LANES] {
            // SAFETY: the array has eight bytes.
            unsafe { L::load_packed::<BITS>(self.0.as_ptr()) }.to_array()
        }
    }

    fn check_packed<const BITS: usize>() {
        let bytes = 0xfedc_ba98_7654_3210_u64.rotate_left(5).to_le_bytes();
        let word = u64::from_le_bytes(bytes);
        let expected: [f32; LANES] = std::array::from_fn(|i| {
            let integer = (word >> (i * BITS)) & ((1 << BITS) - 1);
            f32::from(u8::try_from(integer).expect("at most 8 bits"))
        });
        assert_eq!(vectorized(Packed::<BITS>(&bytes)), expected, "{BITS} bits");
        assert_eq!(Packed::<BITS>(&bytes).run::<Portable>(), expected);
    }

    #[test]
    fn packed_integers_of_all_widths() {
        check_packed::<2>();
        check_packed::<3>();
        check_packed::<4>();
        check_packed::<5>();
        check_packed::<6>();
        check_packed::<8>();
    }

    struct SmallFloats([u8; 4]);

    impl Operation for SmallFloats {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<L: Lanes>(self) -> [f32; LANES] {
            // SAFETY: the array has four bytes.
            unsafe { L::load_e2m1(self.0.as_ptr()) }.to_array()
        }
    }

    #[test]
    fn small_floats_of_all_codes() {
        let halves = [[0x10, 0x32, 0x54, 0x76], [0x98, 0xba, 0xdc, 0xfe]];
        for (codes, expected) in halves.into_iter().zip(E2M1.chunks(LANES)) {
            assert_eq!(vectorized(SmallFloats(codes)), expected);
            assert_eq!(SmallFloats(codes).run::<Portable>(), expected);
        }
    }
}
