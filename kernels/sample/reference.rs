//! The sampler in plain loops: vLLM's ops one after the other, each over the whole vocabulary.

use super::params::SampleParams;

/// The logits that a row is drawn by: -inf where no token may be drawn.
pub(super) fn processed_logits(
    raw: &[f32],
    params: &SampleParams,
    lists: &[i32],
    table: &[i32],
) -> Vec<f32> {
    let mut logits = raw.to_vec();
    mask(&mut logits, params, lists, table);
    penalize(&mut logits, params, table);
    if params.is_greedy() {
        return logits;
    }
    for logit in &mut logits {
        *logit /= params.temperature;
    }
    min_p(&mut logits, params.min_p);
    top_k(&mut logits, params.top_k as usize);
    top_p(&mut logits, params.top_p);
    logits
}

/// Grammar, allowed tokens, bad words, stop tokens and bias.
fn mask(logits: &mut [f32], params: &SampleParams, lists: &[i32], table: &[i32]) {
    let contains = |tokens: &[i32], token: usize| tokens.iter().any(|&other| other == id(token));
    let grammar = params.grammar.of(lists);
    let allowed = params.allowed.of(lists);
    for (token, logit) in logits.iter_mut().enumerate() {
        let by_grammar = grammar.is_empty() || grammar[token / 32] >> (token % 32) & 1 == 1;
        if !by_grammar || (!allowed.is_empty() && !contains(allowed, token)) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let (_, output) = history(params, table);
    let mut words = params.bad_words.of(lists);
    while let [len, rest @ ..] = words {
        let (word, rest) = rest.split_at(len.unsigned_abs() as usize);
        let (last, prefix) = word.split_last().expect("a word has tokens");
        if prefix.len() <= output.len() && &output[output.len() - prefix.len()..] == prefix {
            logits[last.unsigned_abs() as usize] = f32::NEG_INFINITY;
        }
        words = rest;
    }
    let before = logits.to_vec();
    for &token in params.stop.of(lists) {
        logits[token.unsigned_abs() as usize] = f32::NEG_INFINITY;
    }
    if !grammar.is_empty() && logits.iter().all(|logit| !logit.is_finite()) {
        logits.copy_from_slice(&before);
    }
    for pair in params.bias.of(lists).chunks(2) {
        logits[pair[0].unsigned_abs() as usize] += f32::from_bits(pair[1].cast_unsigned());
    }
}

fn penalize(logits: &mut [f32], params: &SampleParams, table: &[i32]) {
    let (prompt, output) = history(params, table);
    for (token, logit) in logits.iter_mut().enumerate() {
        let count = |tokens: &[i32]| tokens.iter().filter(|&&other| other == id(token)).count();
        if count(prompt) + count(output) > 0 {
            *logit *= if *logit > 0.0 {
                1.0 / params.repetition_penalty
            } else {
                params.repetition_penalty
            };
        }
        *logit -= params.frequency_penalty * count(output) as f32;
        *logit -= params.presence_penalty * f32::from(count(output) > 0);
    }
}

fn min_p(logits: &mut [f32], min_p: f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for logit in logits {
        if f64::from(*logit - max).exp() < f64::from(min_p) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn top_k(logits: &mut [f32], top_k: usize) {
    if (1..logits.len()).contains(&top_k) {
        let mut sorted = logits.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for logit in logits {
            if *logit < sorted[top_k - 1] {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "torch divides by and sums into f32"
)]
fn top_p(logits: &mut [f32], top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[a].partial_cmp(&logits[b]).expect("no NaN"));
    let max = logits[order[order.len() - 1]];
    let weights: Vec<f32> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let total = weights.iter().copied().map(f64::from).sum::<f64>() as f32;
    let mut mass = 0.0;
    for &token in &order[..order.len() - 1] {
        mass += f64::from(weights[token] / total);
        if mass as f32 <= 1.0 - top_p {
            logits[token] = f32::NEG_INFINITY;
        }
    }
}

fn history<'a>(params: &SampleParams, table: &'a [i32]) -> (&'a [i32], &'a [i32]) {
    let history = params.history;
    table[history.start as usize..][..history.num_tokens as usize]
        .split_at(history.num_prompt_tokens as usize)
}

fn id(token: usize) -> i32 {
    i32::try_from(token).expect("a vocabulary fits an i32")
}
