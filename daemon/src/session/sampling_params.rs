//! What a request may ask of the sampler: the parts that must fit the request or the vocabulary.
//!
//! Everything else is a number that the kernel takes as it is, or a token id that the kernel
//! passes over when it is in no vocabulary.

use metal_rpc_protocol::limits::MAX_PROMPT_LOGPROB_TOKEN_IDS;
use metal_rpc_protocol::{PromptLogprobTokenIds, SamplingParams};

use super::step_error::StepError;

/// Checks the sampling parameters of a request whose tokens have been checked.
///
/// # Errors
/// [`StepError::TraceOutOfRange`], [`StepError::ThinkingPhrase`], [`StepError::PromptTokenIds`].
pub fn check(
    req_id: &str,
    params: &SamplingParams,
    num_prompt_tokens: u32,
    vocab_size: u32,
) -> Result<(), StepError> {
    let trace = params.trace_decode_token_ids.as_deref().unwrap_or_default();
    // A traced token is an input of the next step, as a drawn one is.
    if let Some(position) = trace.iter().position(|id| *id >= vocab_size) {
        return Err(StepError::TraceOutOfRange {
            req_id: req_id.to_owned(),
            position,
            vocab_size,
        });
    }
    if let Some(budget) = &params.thinking_budget {
        let phrases = [
            &budget.start_token_ids,
            &budget.natural_end_token_ids,
            &budget.end_token_ids,
        ];
        if phrases.iter().any(|phrase| phrase.is_empty()) {
            return Err(StepError::ThinkingPhrase {
                req_id: req_id.to_owned(),
            });
        }
    }
    match &params.prompt_logprob_token_ids {
        Some(asked) => check_prompt_token_ids(req_id, asked, num_prompt_tokens),
        None => Ok(()),
    }
}

/// Whether scores of the prompt's tokens are asked for.
#[must_use]
pub fn scores_prompt(params: &SamplingParams) -> bool {
    params.prompt_logprobs.is_some() || params.prompt_logprob_token_ids.is_some()
}

fn check_prompt_token_ids(
    req_id: &str,
    asked: &PromptLogprobTokenIds,
    num_prompt_tokens: u32,
) -> Result<(), StepError> {
    // The last prompt token predicts the first output token, which is sampled.
    let rows = (num_prompt_tokens - 1).saturating_sub(asked.start);
    let expected = u64::from(rows) * u64::from(asked.num_columns);
    let actual = asked.token_ids.0.len();
    if expected == 0 || expected != actual as u64 || actual > MAX_PROMPT_LOGPROB_TOKEN_IDS {
        return Err(StepError::PromptTokenIds {
            req_id: req_id.to_owned(),
            rows,
            columns: asked.num_columns,
            actual,
            limit: MAX_PROMPT_LOGPROB_TOKEN_IDS,
        });
    }
    Ok(())
}
