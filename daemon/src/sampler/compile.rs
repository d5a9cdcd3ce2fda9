//! Sampling parameters to the kernel's rows.

use metal_rpc_kernels::{History, KernelError, SampleBatch, SampleParams};
use metal_rpc_protocol::{SamplingParams, ThinkingBudget};

use super::SampleRow;

/// What the rows ask for, as the kernel reads it.
///
/// # Errors
/// [`KernelError::Value`] if a row's tokens begin past what the kernel can address.
pub fn compile(rows: &[SampleRow<'_>]) -> Result<SampleBatch, KernelError> {
    let mut batch = SampleBatch::default();
    for row in rows {
        let params = compile_row(row, &mut batch)?;
        batch.rows.push(params);
    }
    Ok(batch)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "vLLM keeps the parameters as f32"
)]
fn compile_row(row: &SampleRow<'_>, batch: &mut SampleBatch) -> Result<SampleParams, KernelError> {
    let params = row.params;
    let start = u32::try_from(row.table_offset).map_err(|_| KernelError::Value {
        kernel: "sample",
        argument: "table_offset",
        rule: "less than 2^32",
    })?;
    let num_output_tokens = row.num_tokens.saturating_sub(row.num_prompt_tokens);
    let needs_more = num_output_tokens < params.min_tokens;
    let stop = if needs_more {
        &params.stop_token_ids[..]
    } else {
        &[]
    };
    let mut compiled = SampleParams {
        temperature: params.temperature as f32,
        top_p: params.top_p as f32,
        top_k: params.top_k,
        min_p: params.min_p as f32,
        presence_penalty: params.presence_penalty as f32,
        frequency_penalty: params.frequency_penalty as f32,
        repetition_penalty: params.repetition_penalty as f32,
        seed: row.seed,
        history: History {
            start,
            num_prompt_tokens: row.num_prompt_tokens,
            num_tokens: row.num_tokens,
        },
        num_logprobs: params.logprobs,
        grammar: batch.push_list(row.grammar.unwrap_or_default().iter().copied()),
        allowed: batch.push_list(ids(params.allowed_token_ids.as_deref().unwrap_or_default())),
        stop: batch.push_list(ids(stop)),
        scored: batch.push_list(ids(params.logprob_token_ids.as_deref().unwrap_or_default())),
        thinking: batch.push_list(params.thinking_budget.iter().flat_map(thinking)),
        traced: traced(params, num_output_tokens),
        ..SampleParams::default()
    };
    compiled.bad_words = batch.push_list(params.bad_words_token_ids.iter().flat_map(|word| {
        let len = i32::try_from(word.len()).expect("a word fits a message");
        std::iter::once(len).chain(ids(word))
    }));
    compiled.bias = batch.push_list(params.logit_bias.iter().flat_map(|&(token, bias)| {
        let bits = (bias as f32).to_bits().cast_signed();
        ids(&[token]).chain([bits]).collect::<Vec<_>>()
    }));
    Ok(compiled)
}

/// A budget as the kernel reads it: numbers first, then the phrases.
fn thinking(budget: &ThinkingBudget) -> Vec<i32> {
    let phrases = [
        &budget.start_token_ids,
        &budget.natural_end_token_ids,
        &budget.end_token_ids,
    ];
    let lens = phrases.map(|phrase| i32::try_from(phrase.len()).expect("a phrase fits a message"));
    let mut list = vec![i32::try_from(budget.max_tokens).unwrap_or(i32::MAX)];
    list.extend(lens);
    list.extend(phrases.into_iter().flat_map(|phrase| ids(phrase)));
    list
}

/// The token that the trace has at this place of the output.
fn traced(params: &SamplingParams, num_output_tokens: u32) -> Option<i32> {
    let trace = params.trace_decode_token_ids.as_ref()?;
    let token = trace.get(num_output_tokens as usize)?;
    i32::try_from(*token).ok()
}

/// Token ids as the kernel has them. One past `i32` is in no vocabulary, and is passed over.
fn ids(tokens: &[u32]) -> impl Iterator<Item = i32> {
    tokens
        .iter()
        .map(|&token| i32::try_from(token).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use metal_rpc_kernels::Span;

    use super::*;

    fn row(params: &SamplingParams, num_tokens: u32) -> SampleRow<'_> {
        SampleRow {
            params,
            seed: 7,
            table_offset: 100,
            num_prompt_tokens: 4,
            num_tokens,
            grammar: None,
        }
    }

    /// The list that a span of the batch's first row stands for.
    fn list(batch: &SampleBatch, span: impl Fn(&SampleParams) -> Span) -> &[i32] {
        let span = span(&batch.rows[0]);
        &batch.lists[span.start as usize..][..span.len as usize]
    }

    #[test]
    fn default_parameters_make_no_lists() {
        let params = SamplingParams::default();
        let batch = compile(&[row(&params, 4), row(&params, 9)]).expect("compiles");
        assert!(batch.lists.is_empty());
        let plain = SampleParams {
            seed: 7,
            ..SampleParams::default()
        };
        for (compiled, num_tokens) in batch.rows.iter().zip([4, 9]) {
            let history = History {
                start: 100,
                num_prompt_tokens: 4,
                num_tokens,
            };
            assert_eq!(*compiled, SampleParams { history, ..plain });
            assert!(!compiled.needs_history());
        }
    }

    #[test]
    fn lists_are_those_of_the_parameters() {
        let params = SamplingParams {
            min_tokens: 3,
            stop_token_ids: vec![2, 5],
            logit_bias: vec![(8, -1.5), (9, 0.25)],
            allowed_token_ids: Some(vec![1, u32::MAX]),
            bad_words_token_ids: vec![vec![6], vec![7, 8, 9]],
            logprob_token_ids: Some(vec![11]),
            thinking_budget: Some(ThinkingBudget {
                max_tokens: u32::MAX,
                start_token_ids: vec![1],
                natural_end_token_ids: vec![2, 3],
                end_token_ids: vec![4, 2, 3],
            }),
            trace_decode_token_ids: Some(vec![30, 31, 32, 33]),
            ..SamplingParams::default()
        };
        let bound = SampleRow {
            grammar: Some(&[-1, 0]),
            ..row(&params, 6)
        };
        let batch = compile(&[bound]).expect("compiles");
        let bits = |bias: f32| bias.to_bits().cast_signed();
        assert_eq!(list(&batch, |row| row.grammar), [-1, 0]);
        assert_eq!(list(&batch, |row| row.stop), [2, 5]);
        assert_eq!(list(&batch, |row| row.bias), [8, bits(-1.5), 9, bits(0.25)]);
        assert_eq!(list(&batch, |row| row.allowed), [1, i32::MAX]);
        assert_eq!(list(&batch, |row| row.bad_words), [1, 6, 3, 7, 8, 9]);
        assert_eq!(list(&batch, |row| row.scored), [11]);
        assert_eq!(
            list(&batch, |row| row.thinking),
            [i32::MAX, 1, 2, 3, 1, 2, 3, 4, 2, 3]
        );
        // Two tokens of the output are known, so the third comes next.
        assert_eq!(batch.rows[0].traced, Some(32));
        assert!(batch.rows[0].needs_history());
    }

    #[test]
    fn stop_tokens_are_allowed_from_min_tokens_on() {
        let params = SamplingParams {
            min_tokens: 3,
            stop_token_ids: vec![2],
            ..SamplingParams::default()
        };
        for (num_tokens, is_masked) in [(4, true), (6, true), (7, false), (20, false)] {
            let batch = compile(&[row(&params, num_tokens)]).expect("compiles");
            assert_eq!(
                !list(&batch, |row| row.stop).is_empty(),
                is_masked,
                "{num_tokens}"
            );
        }
    }
}
