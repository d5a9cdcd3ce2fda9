//! What changes the logits before temperature: masks, bias and penalties, in vLLM's order.

use super::{
    params::{SampleParams, Span},
    thinking,
};

/// The logit of a token that must come next, whatever the others are.
const FORCED: f32 = 1e9;

/// The mark of a token that the prompt has, beside its count in the output.
const IN_PROMPT: u32 = 1 << 31;

/// Applies the grammar, and everything of vLLM's `Sampler.apply_logits_processors`.
///
/// The end of a thought comes last, so that nothing weakens it.
///
/// `counts` is zeros, one a token of the vocabulary, and is left so.
pub(super) fn process(
    logits: &mut [f32],
    params: &SampleParams,
    lists: &[i32],
    table: &[i32],
    counts: &mut Vec<u32>,
) {
    mask_grammar(logits, params.grammar.of(lists));
    keep_allowed(logits, params.allowed.of(lists));
    let tokens = known_tokens(params, table);
    let (prompt, output) =
        tokens.split_at(tokens.len().min(params.history.num_prompt_tokens as usize));
    mask_bad_words(logits, params.bad_words.of(lists), output);
    mask_stop_tokens(logits, params.stop, lists, !params.grammar.is_empty());
    for pair in params.bias.of(lists).as_chunks::<2>().0 {
        if let Some(logit) = logit(logits, pair[0]) {
            *logit += f32::from_bits(pair[1].cast_unsigned());
        }
    }
    if params.has_penalties() {
        counts.resize(logits.len(), 0);
        penalize(logits, params, prompt, output, counts);
    }
    if let Some(token) = thinking::forced_token(params.thinking.of(lists), tokens)
        && let Some(logit) = logit(logits, token)
    {
        *logit = FORCED;
    }
}

/// Masks every token whose bit is not set; tokens that the bitmask does not reach are not allowed.
pub(super) fn mask_grammar(logits: &mut [f32], bitmask: &[i32]) {
    if bitmask.is_empty() {
        return;
    }
    let words = bitmask.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        if word != -1 {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

fn keep_allowed(logits: &mut [f32], allowed: &[i32]) {
    if allowed.is_empty() {
        return;
    }
    let kept: Vec<_> = allowed
        .iter()
        .map(|&token| logit(logits, token).copied())
        .collect();
    logits.fill(f32::NEG_INFINITY);
    for (&token, kept) in allowed.iter().zip(kept) {
        if let (Some(logit), Some(kept)) = (logit(logits, token), kept) {
            *logit = kept;
        }
    }
}

/// The tokens of prompt and output; nothing if the row does not need them.
fn known_tokens<'a>(params: &SampleParams, table: &'a [i32]) -> &'a [i32] {
    if !params.needs_history() {
        return &[];
    }
    let history = params.history;
    &table[history.start as usize..][..history.num_tokens as usize]
}

/// Masks the last token of each word whose other tokens end the output.
fn mask_bad_words(logits: &mut [f32], mut words: &[i32], output: &[i32]) {
    while let Some((&len, rest)) = words.split_first() {
        let len = usize::try_from(len).expect("a length is never negative");
        let (word, rest) = rest.split_at(len);
        if let Some((&last, prefix)) = word.split_last()
            && output.ends_with(prefix)
            && let Some(logit) = logit(logits, last)
        {
            *logit = f32::NEG_INFINITY;
        }
        words = rest;
    }
}

/// Masks the tokens that would end the output too early.
///
/// A grammar may allow nothing else; then they are needed, and come back.
fn mask_stop_tokens(logits: &mut [f32], stop: Span, lists: &[i32], has_grammar: bool) {
    let tokens = stop.of(lists);
    let mut masked = Vec::new();
    for &token in tokens {
        if let Some(logit) = logit(logits, token) {
            masked.push((token, *logit));
            *logit = f32::NEG_INFINITY;
        }
    }
    if has_grammar && logits.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        for (token, before) in masked {
            if let Some(logit) = logit(logits, token).filter(|_| before.is_finite()) {
                *logit = before;
            }
        }
    }
}

/// Repetition, frequency and presence penalties, in this order, on the tokens of the history.
fn penalize(
    logits: &mut [f32],
    params: &SampleParams,
    prompt: &[i32],
    output: &[i32],
    counts: &mut [u32],
) {
    for &token in prompt {
        if let Some(count) = at(counts, token) {
            *count |= IN_PROMPT;
        }
    }
    for &token in output {
        if let Some(count) = at(counts, token) {
            *count += 1;
        }
    }
    let repetition = params.repetition_penalty;
    for &token in prompt.iter().chain(output) {
        // The first visit of a token takes its count, so that later ones find zero.
        let Some(count) = at(counts, token)
            .map(std::mem::take)
            .filter(|&count| count != 0)
        else {
            continue;
        };
        let Some(logit) = logit(logits, token) else {
            continue;
        };
        *logit *= if *logit > 0.0 {
            1.0 / repetition
        } else {
            repetition
        };
        let in_output = count & !IN_PROMPT;
        if in_output != 0 {
            *logit -= params.frequency_penalty * in_output as f32;
            *logit -= params.presence_penalty;
        }
    }
}

/// The logit of `token`, which a list or the token table names; -1 marks a failed draw there.
fn logit(logits: &mut [f32], token: i32) -> Option<&mut f32> {
    at(logits, token)
}

fn at<T>(values: &mut [T], token: i32) -> Option<&mut T> {
    values.get_mut(usize::try_from(token).ok()?)
}
