//! Which tokens min-p, top-k and top-p leave.
//!
//! Tokens are ordered by logit, and those of equal logit by id, as vLLM's sort orders them. Every
//! filter keeps an upper part of that order, so what is left is known by its lowest token and no
//! logit needs to be masked.

use super::lanes;

/// A token's place in the order: the logit's bits, order-preserving, above the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u64);

impl Rank {
    /// Below every token.
    pub(super) const LOWEST: Self = Self(0);

    pub(super) fn new(token: usize, logit: f32) -> Self {
        // Adding zero makes -0 and 0 the same.
        let bits = (logit + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 {
            bits | 1 << 31
        } else {
            !bits
        };
        let token = u32::try_from(token).expect("a token id fits an u32");
        Self(u64::from(ordered) << 32 | u64::from(token))
    }
}

/// The filters of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    pub(super) min_p: f32,
    pub(super) top_k: usize,
    pub(super) top_p: f32,
}

/// Tokens that can be drawn, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    pub(super) tokens: Vec<usize>,
    pub(super) logits: Vec<f32>,
    /// e^(logit - largest logit)
    pub(super) weights: Vec<f32>,
    /// Sums of blocks of `weights`.
    pub(super) sums: Vec<f64>,
    buffer: Vec<f32>,
}

impl Filters {
    /// Whether every token of a vocabulary of this size stays.
    pub(super) fn keep_all(&self, vocab_size: usize) -> bool {
        self.min_p <= 0.0 && self.top_p >= 1.0 && !(1..vocab_size).contains(&self.top_k)
    }
}

impl Candidates {
    /// Weighs the tokens that the filters leave, and returns the lowest of them.
    ///
    /// `max` is the largest of `logits`, and finite.
    pub(super) fn collect(&mut self, logits: &[f32], max: f32, filters: Filters) -> Rank {
        let mut floor = f32::NEG_INFINITY;
        if filters.min_p > 0.0 {
            floor = max + filters.min_p.ln();
        }
        if (1..logits.len()).contains(&filters.top_k) {
            floor = floor.max(lanes::nth_largest(logits, filters.top_k, &mut self.buffer));
        }
        let mut total = None;
        let mut candidate_floor = floor;
        if filters.top_p < 1.0 && floor == f32::NEG_INFINITY {
            let sum = lanes::weigh(logits, max, &mut self.weights, &mut self.sums);
            candidate_floor = below_nucleus(logits.len(), max, sum, filters.top_p);
            total = Some(sum);
        }
        self.take(logits, candidate_floor);
        let sum = lanes::weigh(&self.logits, max, &mut self.weights, &mut self.sums);
        let mut lowest = Rank::LOWEST;
        if floor > f32::NEG_INFINITY {
            lowest = Rank::new(0, floor);
        }
        if filters.top_p < 1.0 {
            lowest = lowest.max(self.nucleus(max, (total.unwrap_or(sum), sum), filters.top_p));
            self.cut(lowest);
        }
        lowest
    }

    /// Takes the tokens whose logits are at least `floor`.
    fn take(&mut self, logits: &[f32], floor: f32) {
        self.tokens.clear();
        self.logits.clear();
        let (tokens, taken) = (&mut self.tokens, &mut self.logits);
        lanes::visit_at_least(logits, floor, |token, logit| {
            tokens.push(token);
            taken.push(logit);
        });
    }

    /// Takes the weight of the candidates below `lowest`.
    fn cut(&mut self, lowest: Rank) {
        let ranks = self.tokens.iter().zip(&self.logits);
        for (weight, (&token, &logit)) in self.weights.iter_mut().zip(ranks) {
            if Rank::new(token, logit) < lowest {
                *weight = 0.0;
            }
        }
        self.sums.clear();
        let blocks = self.weights.chunks(lanes::BLOCK);
        self.sums
            .extend(blocks.map(|block| block.iter().copied().map(f64::from).sum::<f64>()));
    }

    /// The lowest token of the smallest set, taken from the top, whose mass exceeds `top_p`.
    ///
    /// As vLLM's op has it: with the probabilities in ascending order, a token goes if the sum up
    /// to and including it is at most `1 - top_p`, in f32; the last one stays. `total` is the
    /// weight of all tokens and `sum` that of the candidates, which may lack a tail that goes.
    fn nucleus(&self, max: f32, (total, sum): (f64, f64), top_p: f32) -> Rank {
        #[expect(clippy::cast_possible_truncation, reason = "vLLM divides by an f32")]
        let divisor = total as f32;
        #[expect(clippy::cast_possible_truncation, reason = "vLLM sums into an f32")]
        let stays = |mass: f64| mass as f32 > 1.0 - top_p;
        let bins = Bins::new(max, &self.logits);
        let mut masses = [0.0; Bins::COUNT];
        for (&logit, &weight) in self.logits.iter().zip(&self.weights) {
            masses[bins.of(logit)] += f64::from(weight / divisor);
        }
        let mut mass = (total - sum) / f64::from(divisor);
        let mut split = 0;
        for (bin, &in_bin) in masses.iter().enumerate().skip(1).rev() {
            if stays(mass + in_bin) {
                split = bin;
                break;
            }
            mass += in_bin;
        }
        let mut ascending: Vec<_> = (0..self.tokens.len())
            .filter(|&i| bins.of(self.logits[i]) == split)
            .map(|i| (Rank::new(self.tokens[i], self.logits[i]), self.weights[i]))
            .collect();
        ascending.sort_unstable_by_key(|&(rank, _)| rank);
        let mut lowest = Rank::LOWEST;
        for (rank, weight) in ascending {
            lowest = rank;
            mass += f64::from(weight / divisor);
            if stays(mass) {
                break;
            }
        }
        lowest
    }
}

/// A logit below which no token is in the nucleus: all below it together weigh too little.
fn below_nucleus(vocab_size: usize, max: f32, total: f64, top_p: f32) -> f32 {
    let share = f64::from(1.0 - top_p) * total / vocab_size as f64;
    // The margin covers every rounding on the way, here and in the nucleus itself.
    #[expect(clippy::cast_possible_truncation, reason = "a bound with a margin")]
    let distance = (share.ln() - 0.01) as f32;
    max + distance
}

/// Equal steps of the logits from the largest down, so that only one step needs sorting.
struct Bins {
    max: f32,
    scale: f32,
}

impl Bins {
    const COUNT: usize = 256;

    fn new(max: f32, logits: &[f32]) -> Self {
        // A token 30 below the largest weighs 1e-13: all such share the last bin.
        let range = logits
            .iter()
            .fold(0.0f32, |range, &logit| range.max((max - logit).min(30.0)));
        Self {
            max,
            scale: 255.0 / range.max(1e-3),
        }
    }

    /// The bin of a logit; never falls as the logit falls.
    fn of(&self, logit: f32) -> usize {
        let step = (self.max - logit) * self.scale;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates, and infinity is the last bin"
        )]
        let step = step as usize;
        step.min(Self::COUNT - 1)
    }
}
