//! Sampling parameters to the kernel's rows.

use metal_rpc_kernels::{History, KernelError, SampleBatch, SampleParams};

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
    let is_biased = |bias: f32| [bias.to_bits().cast_signed()];
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
        ..SampleParams::default()
    };
    compiled.bad_words = batch.push_list(params.bad_words_token_ids.iter().flat_map(|word| {
        let len = i32::try_from(word.len()).expect("a word fits a message");
        std::iter::once(len).chain(ids(word))
    }));
    compiled.bias = batch.push_list(params.logit_bias.iter().flat_map(|&(token, bias)| {
        ids(&[token])
            .chain(is_biased(bias as f32))
            .collect::<Vec<_>>()
    }));
    Ok(compiled)
}

/// Token ids as the kernel has them. One past `i32` is in no vocabulary, and is passed over.
fn ids(tokens: &[u32]) -> impl Iterator<Item = i32> {
    tokens
        .iter()
        .map(|&token| i32::try_from(token).unwrap_or(i32::MAX))
}
