//! Log probabilities (or logits) of the tokens that a row reports.

use super::{filter::Rank, lanes};

/// What to report of a row beside its own token.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reported<'a> {
    /// This many of the most likely tokens, in descending order; of equal ones the lower id first.
    MostLikely(usize),
    /// These tokens.
    Tokens(&'a [i32]),
}

/// Room for one row of the tables.
#[derive(Debug)]
pub(super) struct ScoreRow<'a> {
    pub(super) token_ids: &'a mut [i32],
    pub(super) scores: &'a mut [f32],
    pub(super) rank: &'a mut i32,
}

impl ScoreRow<'_> {
    /// Fills the row with padding: token 0 at -inf, as vLLM pads, and rank 0.
    pub(super) fn pad(&mut self) {
        self.token_ids.fill(0);
        self.scores.fill(f32::NEG_INFINITY);
        *self.rank = 0;
    }

    /// Reports `token` in column 0 and `reported` after it; pads what is left.
    ///
    /// A row with a NaN reports nothing but the token, at NaN.
    pub(super) fn fill(
        &mut self,
        logits: &[f32],
        normalize: bool,
        token: i32,
        reported: Reported<'_>,
    ) {
        self.pad();
        self.token_ids[0] = token;
        let (max, has_nan) = lanes::largest(logits);
        let own = usize::try_from(token)
            .ok()
            .and_then(|token| logits.get(token));
        let (Some(&own), false) = (own, has_nan) else {
            self.scores[0] = f32::NAN;
            return;
        };
        let score = scorer(logits, max, normalize);
        self.scores[0] = score(own);
        *self.rank = index(lanes::count_at_least(logits, own));
        let columns = self.token_ids[1..].iter_mut().zip(&mut self.scores[1..]);
        match reported {
            Reported::MostLikely(count) => {
                for ((id, value), token) in columns.zip(most_likely(logits, count)) {
                    *id = index(token);
                    *value = score(logits[token]);
                }
            }
            Reported::Tokens(tokens) => {
                for ((id, value), &token) in columns.zip(tokens) {
                    *id = token;
                    *value = score_of(logits, token, &score);
                }
            }
        }
    }
}

/// Scores `tokens` of one row; what is no token scores -inf, and a row with a NaN scores NaN.
pub(super) fn score_tokens(logits: &[f32], normalize: bool, tokens: &[i32], out: &mut [f32]) {
    let (max, has_nan) = lanes::largest(logits);
    if has_nan {
        out.fill(f32::NAN);
        return;
    }
    let score = scorer(logits, max, normalize);
    for (value, &token) in out.iter_mut().zip(tokens) {
        *value = score_of(logits, token, &score);
    }
}

/// What a logit of the row scores.
fn scorer(logits: &[f32], max: f32, normalize: bool) -> impl Fn(f32) -> f32 {
    let offset = if normalize { log_sum(logits, max) } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    move |logit: f32| match normalize {
        true => (f64::from(logit - max) - offset) as f32,
        false => logit,
    }
}

fn score_of(logits: &[f32], token: i32, score: impl Fn(f32) -> f32) -> f32 {
    let logit = usize::try_from(token)
        .ok()
        .and_then(|token| logits.get(token));
    logit.map_or(f32::NEG_INFINITY, |&logit| score(logit))
}

/// Logarithm of the sum of e^(logit - max).
fn log_sum(logits: &[f32], max: f32) -> f64 {
    lanes::sum_of_weights(logits, max).ln()
}

fn most_likely(logits: &[f32], count: usize) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let floor = lanes::nth_largest(logits, count, &mut Vec::new());
    let mut ranked = Vec::new();
    // Counting ids down makes the lower of two equal tokens the higher one in the order.
    lanes::visit_at_least(logits, floor, |token, logit| {
        ranked.push((Rank::new(logits.len() - token, logit), token));
    });
    ranked.sort_unstable_by_key(|&(rank, _)| std::cmp::Reverse(rank));
    ranked.truncate(count);
    ranked.into_iter().map(|(_, token)| token).collect()
}

fn index(value: usize) -> i32 {
    i32::try_from(value).expect("a vocabulary fits an i32")
}
