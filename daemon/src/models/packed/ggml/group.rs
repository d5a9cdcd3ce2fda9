//! What a block becomes: groups of 32 weights with one scale and one bias.

use half::f16;

/// Weights that share scale and bias, as they are held.
pub(super) const GROUP: usize = 32;

/// The finest that a scale is divided by: more steps than a group has rarely hit its weights better.
const FINEST: u8 = 8;

/// The largest integer.
const MAX_INTEGER: f32 = 255.0;

/// Thirty-two weights as they are held: `scale * integer + bias`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) scale: f32,
    pub(super) bias: f32,
    pub(super) integers: [u8; GROUP],
}

impl Group {
    pub(super) const EMPTY: Self = Self {
        scale: 0.0,
        bias: 0.0,
        integers: [0; GROUP],
    };

    /// The nearest of 256 steps between the smallest and the largest.
    pub(super) fn rounded(weights: &[f32]) -> Self {
        let (low, high) = range(weights);
        Self::nearest(weights, (high - low) / MAX_INTEGER, low)
    }

    /// As [`Self::rounded`], or in steps that divide `scale` if those are nearer: weights that are
    /// multiples of it are then exact, and others may be.
    pub(super) fn rounded_by(weights: &[f32], scale: f32) -> Self {
        let (low, high) = range(weights);
        let mut best = Self::rounded(weights);
        let mut least = best.error(weights);
        for divisor in 1..=FINEST {
            let step = scale.abs() / f32::from(divisor);
            let bias = (low / step).floor() * step;
            // Also where the scale is zero.
            let fits = high - bias <= (MAX_INTEGER + 0.5) * step;
            if !fits || step == 0.0 || least == 0.0 {
                break;
            }
            let group = Self::nearest(weights, step, bias);
            let error = group.error(weights);
            if error < least {
                (best, least) = (group, error);
            }
        }
        best
    }

    /// Integers for a scale and a bias as they will be held: in float16.
    fn nearest(weights: &[f32], scale: f32, bias: f32) -> Self {
        let [scale, bias] = [scale, bias].map(|value| f16::from_f32(value).to_f32());
        let mut integers = [0; GROUP];
        if scale > 0.0 {
            for (integer, weight) in integers.iter_mut().zip(weights) {
                let step = ((weight - bias) / scale + 0.5).clamp(0.0, MAX_INTEGER);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "cut to a whole number of 0 to 255"
                )]
                let step = step as u8;
                *integer = step;
            }
        }
        Self {
            scale,
            bias,
            integers,
        }
    }

    /// The sum of squared differences.
    fn error(&self, weights: &[f32]) -> f32 {
        let held = self.integers.iter();
        let held = held.map(|&integer| self.scale * f32::from(integer) + self.bias);
        std::iter::zip(held, weights)
            .map(|(a, b)| (a - b).powi(2))
            .sum()
    }
}

fn range(weights: &[f32]) -> (f32, f32) {
    let low = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let high = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (low, high)
}
