//! Loops over one row of the vocabulary, with the vector registers of this CPU.

use crate::simd::{LANES, Lanes, Operation, vectorized};

/// Tokens whose weights are summed together, so that a draw skips what lies before it.
pub(super) const BLOCK: usize = 1024;

/// Elements that a search looks at together.
const STRIDE: usize = 32;

/// The largest value, and whether any is NaN.
pub(super) fn largest(values: &[f32]) -> (f32, bool) {
    struct Largest<'a>(&'a [f32]);
    impl Operation for Largest<'_> {
        type Output = (f32, bool);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            const WITHOUT_SIGN: u32 = u32::MAX >> 1;
            let mut max = [f32::NEG_INFINITY; STRIDE];
            // A NaN's bits are above those of infinity, and integers have a maximum that keeps it.
            let mut bits = [0u32; STRIDE];
            let (chunks, rest) = self.0.as_chunks::<STRIDE>();
            for chunk in chunks {
                for i in 0..STRIDE {
                    max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
                    bits[i] = bits[i].max(chunk[i].to_bits() & WITHOUT_SIGN);
                }
            }
            for (i, value) in rest.iter().enumerate() {
                max[i] = max[i].max(*value);
                bits[i] = bits[i].max(value.to_bits() & WITHOUT_SIGN);
            }
            let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
            let has_nan = bits.iter().any(|&bits| bits > f32::INFINITY.to_bits());
            (max, has_nan)
        }
    }
    vectorized(Largest(values))
}

/// The index of the first value that equals `wanted`.
pub(super) fn position(values: &[f32], wanted: f32) -> Option<usize> {
    struct Position<'a>(&'a [f32], f32);
    impl Operation for Position<'_> {
        type Output = Option<usize>;
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let Self(values, wanted) = self;
            let has = |chunk: &[f32]| {
                chunk
                    .iter()
                    .fold(false, |any, &value| any | (value == wanted))
            };
            let chunk = values.chunks(STRIDE).position(has)?;
            let start = chunk * STRIDE;
            values[start..]
                .iter()
                .position(|&value| value == wanted)
                .map(|i| start + i)
        }
    }
    vectorized(Position(values, wanted))
}

/// Divides every value by `divisor`.
pub(super) fn divide(values: &mut [f32], divisor: f32) {
    struct Divide<'a>(&'a mut [f32], f32);
    impl Operation for Divide<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for value in self.0 {
                *value /= self.1;
            }
        }
    }
    vectorized(Divide(values, divisor));
}

/// Number of values that are at least `floor`.
pub(super) fn count_at_least(values: &[f32], floor: f32) -> usize {
    struct Count<'a>(&'a [f32], f32);
    impl Operation for Count<'_> {
        type Output = usize;
        #[inline(always)]
        fn run<L: Lanes>(self) -> usize {
            let mut count = 0;
            for block in self.0.chunks(BLOCK) {
                let in_block: u32 = block.iter().map(|&value| u32::from(value >= self.1)).sum();
                count += in_block as usize;
            }
            count
        }
    }
    vectorized(Count(values, floor))
}

/// Calls `visit` with the index and the value of each that is at least `floor`, in order.
pub(super) fn visit_at_least(values: &[f32], floor: f32, visit: impl FnMut(usize, f32)) {
    struct Visit<'a, F>(&'a [f32], f32, F);
    impl<F: FnMut(usize, f32)> Operation for Visit<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let Self(values, floor, mut visit) = self;
            for (number, chunk) in values.chunks(STRIDE).enumerate() {
                // Most chunks of a row have nothing, and finding that out takes no branch.
                if chunk
                    .iter()
                    .fold(false, |any, &value| any | (value >= floor))
                {
                    for (i, &value) in chunk.iter().enumerate() {
                        if value >= floor {
                            visit(number * STRIDE + i, value);
                        }
                    }
                }
            }
        }
    }
    vectorized(Visit(values, floor, visit));
}

/// The `count`-th largest value; `buffer` is room to work in.
///
/// Keeps the largest values seen so far in a buffer of about twice `count`, and halves it when it
/// is full: a value that cannot be among them costs one comparison.
pub(super) fn nth_largest(values: &[f32], count: usize, buffer: &mut Vec<f32>) -> f32 {
    assert!(count >= 1);
    assert!(count <= values.len());
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let (first, rest) = values.split_at(count);
    buffer.clear();
    buffer.extend_from_slice(first);
    let mut floor = first.iter().copied().fold(f32::INFINITY, f32::min);
    let capacity = 2 * count.max(STRIDE);
    // Short pieces, so that the floor rises early and most of the row fails the first comparison.
    for piece in rest.chunks(BLOCK / 4) {
        visit_at_least(piece, floor, |_, value| {
            // One that ties with the floor changes nothing: there are `count` such already.
            if value > floor {
                buffer.push(value);
            }
        });
        if buffer.len() >= capacity {
            floor = *buffer.select_nth_unstable_by(count - 1, descending).1;
            buffer.truncate(count);
        }
    }
    *buffer.select_nth_unstable_by(count - 1, descending).1
}

/// Writes e^(value - max) of each value to `weights`, and returns their sum.
///
/// A value of -inf weighs exactly nothing. `sums` receives the sum of each [`BLOCK`].
pub(super) fn weigh(values: &[f32], max: f32, weights: &mut Vec<f32>, sums: &mut Vec<f64>) -> f64 {
    weights.resize(values.len(), 0.0);
    sums.clear();
    for (values, weights) in values.chunks(BLOCK).zip(weights.chunks_mut(BLOCK)) {
        sums.push(weigh_block(values, max, weights));
    }
    sums.iter().sum()
}

/// The sum that [`weigh`] returns, alone.
pub(super) fn sum_of_weights(values: &[f32], max: f32) -> f64 {
    let mut weights = [0.0; BLOCK];
    let blocks = values.chunks(BLOCK);
    blocks
        .map(|values| weigh_block(values, max, &mut weights[..values.len()]))
        .sum()
}

fn weigh_block(values: &[f32], max: f32, weights: &mut [f32]) -> f64 {
    vectorized(Weigh {
        values,
        max,
        weights,
    })
}

/// The weights of one block, and their sum.
struct Weigh<'a> {
    values: &'a [f32],
    max: f32,
    weights: &'a mut [f32],
}

impl Operation for Weigh<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f64 {
        let Self {
            values,
            max,
            weights,
        } = self;
        let (chunks, rest) = values.as_chunks::<LANES>();
        let (chunks_out, rest_out) = weights.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(chunks_out) {
            *out = powers::<L>(chunk, max);
        }
        let mut padded = [f32::NEG_INFINITY; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        rest_out.copy_from_slice(&powers::<L>(&padded, max)[..rest.len()]);

        // `exp` of -inf may be a tiny number.
        for (weight, &value) in weights.iter_mut().zip(values) {
            *weight = if value == f32::NEG_INFINITY {
                0.0
            } else {
                *weight
            };
        }
        let mut sums = [0.0f64; LANES];
        let (chunks, rest) = weights.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                sums[i] += f64::from(chunk[i]);
            }
        }
        for (sum, &weight) in sums.iter_mut().zip(rest) {
            *sum += f64::from(weight);
        }
        let [a, b, c, d, e, f, g, h] = sums;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}

/// e^(value - max) of eight values. A function, because a closure would not be compiled with the
/// CPU features of its surroundings.
#[inline(always)]
fn powers<L: Lanes>(values: &[f32; LANES], max: f32) -> [f32; LANES] {
    // SAFETY: the array has eight elements.
    let values = unsafe { L::load(values.as_ptr()) };
    values.add(L::splat(-max)).exp().to_array()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Logits with ties and masked tokens.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            4 => -20.0f32..20.0,
            2 => (-3i8..3).prop_map(f32::from),
            1 => Just(f32::NEG_INFINITY),
        ];
        proptest::collection::vec(value, 1..3000)
    }

    proptest! {
        #[test]
        fn the_nth_largest_is_that_of_a_sort(values in values(), at in 0.0f64..1.0) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
            let count = 1 + (at * values.len() as f64) as usize;
            let mut sorted = values.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            prop_assert_eq!(nth_largest(&values, count, &mut Vec::new()), sorted[count - 1]);
        }

        #[test]
        fn every_value_at_the_floor_is_visited_in_order(values in values(), floor in -4.0f32..4.0) {
            let floor = floor.round();
            let mut visited = Vec::new();
            visit_at_least(&values, floor, |i, value| visited.push((i, value)));
            let expected: Vec<_> =
                values.iter().copied().enumerate().filter(|&(_, value)| value >= floor).collect();
            prop_assert_eq!(count_at_least(&values, floor), expected.len());
            let first = values.iter().position(|&value| value == floor);
            prop_assert_eq!(position(&values, floor), first);
            prop_assert_eq!(visited, expected);
        }

        #[test]
        fn weights_are_powers_and_masked_tokens_weigh_nothing(values in values()) {
            let (max, nan) = largest(&values);
            prop_assert!(!nan);
            prop_assume!(max.is_finite());
            let (mut weights, mut sums) = (Vec::new(), Vec::new());
            let total = weigh(&values, max, &mut weights, &mut sums);
            let mut exact_total = 0.0;
            for (&value, &actual) in values.iter().zip(&weights) {
                let exact = f64::from(value - max).exp();
                prop_assert!((f64::from(actual) - exact).abs() <= 3e-7 * exact, "{actual} {exact}");
                prop_assert_eq!(actual == 0.0, value == f32::NEG_INFINITY);
                exact_total += exact;
            }
            prop_assert!((total - exact_total).abs() <= 3e-7 * exact_total);
            prop_assert_eq!(sums.len(), values.len().div_ceil(BLOCK));
            prop_assert_eq!(sum_of_weights(&values, max).to_bits(), total.to_bits());
        }
    }

    #[test]
    fn a_nan_anywhere_is_seen() {
        for len in [1, 31, 32, 33, 1000] {
            for at in [0, len / 2, len - 1] {
                let mut values = vec![1.0; len];
                assert_eq!(largest(&values), (1.0, false));
                values[at] = f32::NAN;
                assert!(largest(&values).1, "NaN at {at} of {len}");
            }
        }
    }
}
