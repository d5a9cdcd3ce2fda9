//! The draw: one random number of a counter-based generator, and the token at that share of the
//! mass.

/// A number in `[0, 1)` that is a function of its two arguments alone, with 53 random bits.
///
/// # Source
/// Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), with
/// the seed as key and the position as counter.
pub(super) fn uniform(seed: u64, position: u32) -> f64 {
    let [a, b, ..] = philox([position, 0, 0, 0], seed);
    let bits = u64::from(a >> 5) << 26 | u64::from(b >> 6);
    bits as f64 / (1u64 << 53) as f64
}

fn philox(mut counter: [u32; 4], key: u64) -> [u32; 4] {
    const ROUNDS: u32 = 10;
    let split = |value: u64| -> (u32, u32) {
        #[expect(clippy::cast_possible_truncation, reason = "the halves")]
        let halves = ((value >> 32) as u32, value as u32);
        halves
    };
    let (mut key1, mut key0) = split(key);
    for _ in 0..ROUNDS {
        let (high0, low0) = split(u64::from(counter[0]) * 0xd251_1f53);
        let (high1, low1) = split(u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [
            high1 ^ counter[1] ^ key0,
            low1,
            high0 ^ counter[3] ^ key1,
            low0,
        ];
        key0 = key0.wrapping_add(0x9e37_79b9);
        key1 = key1.wrapping_add(0xbb67_ae85);
    }
    counter
}

/// The index at which the running sum of `weights` exceeds the share `uniform` of the whole.
///
/// `sums` are the sums of blocks of `block` weights. An index without weight is never returned;
/// `None` if all are.
pub(super) fn inverse_cdf(
    weights: &[f32],
    sums: &[f64],
    block: usize,
    uniform: f64,
) -> Option<usize> {
    let target = uniform * sums.iter().sum::<f64>();
    let mut below = 0.0;
    let mut chosen = None;
    for (number, (block_weights, &sum)) in weights.chunks(block).zip(sums).enumerate() {
        if sum > 0.0 {
            chosen = Some((number, block_weights, below));
            below += sum;
            if below > target {
                break;
            }
        }
    }
    // Rounding can leave the target at the very end of a block: its last token with weight it is.
    let (number, block_weights, mut below) = chosen?;
    let mut found = None;
    for (i, &weight) in block_weights.iter().enumerate() {
        if weight > 0.0 {
            found = Some(number * block + i);
            below += f64::from(weight);
            if below > target {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_numbers() {
        // The known answers of Random123's `kat_vectors`, philox4x32 10.
        assert_eq!(
            philox([0; 4], 0),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], u64::MAX),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                0x299f_31d0_a409_3822
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_share_of_the_mass_finds_its_token() {
        let check = |weights: &[f32], uniform: f64, expected: Option<usize>| {
            for block in [1, 2, 3, 100] {
                let sums: Vec<f64> = weights
                    .chunks(block)
                    .map(|block| block.iter().copied().map(f64::from).sum())
                    .collect();
                let found = inverse_cdf(weights, &sums, block, uniform);
                assert_eq!(
                    found, expected,
                    "{weights:?} at {uniform}, blocks of {block}"
                );
            }
        };
        let weights = [0.0, 1.0, 0.0, 2.0, 1.0, 0.0];
        check(&weights, 0.0, Some(1));
        check(&weights, 0.2499, Some(1));
        check(&weights, 0.25, Some(3));
        check(&weights, 0.7499, Some(3));
        check(&weights, 0.75, Some(4));
        check(&weights, 1.0, Some(4));
        check(&[0.0, 0.0], 0.5, None);
        check(&[], 0.5, None);
        check(&[3.0], 0.999, Some(0));
    }
}
