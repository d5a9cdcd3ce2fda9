//! Scores of prompt tokens, for the requests that ask for them.

use std::ops::Range;

use metal_rpc_protocol::PromptLogprobTokenIds;
use mlx_rs::Array;

use super::sampling::rows;
use super::{Engine, EngineError};
use crate::models::loaded::ModelKey;
use crate::sampler::{self, LogprobsMode, PromptScores};
use crate::session::sampling_params::scores_prompt;
use crate::session::{SessionCache, SessionId, ValidRow, ValidStep};

/// Positions whose logits are in memory together: 160 MB with the largest vocabularies.
const MAX_POSITIONS: u32 = 256;

impl Engine {
    /// Scores the prompt tokens that this step runs; returns the scores of the prompts that it
    /// completes.
    ///
    /// # Shapes
    /// - `hidden`: the forward's hidden states, the step's from row `first_token` on
    pub(super) fn prompt_scores(
        &mut self,
        key: &ModelKey,
        id: SessionId,
        step: &ValidStep,
        (hidden, mut first_token): (&Array, i32),
        outputs: &mut Vec<Array>,
    ) -> Result<Vec<(u32, PromptScores)>, EngineError> {
        let mut completed = Vec::new();
        let session = self
            .sessions
            .get_mut(&id)
            .expect("the step was taken from it");
        let mode = session.logprobs_mode;
        let cache = session.cache.as_mut().expect("the step was applied to it");
        for (index, row) in (0_u32..).zip(&step.rows) {
            let row_token = first_token;
            first_token += row.num_scheduled_tokens.cast_signed();
            if !scores_prompt(&row.sampling_params) {
                continue;
            }
            // The last prompt token predicts the first output token: that one is sampled.
            let end = row.seq_len().min(row.num_prompt_tokens - 1);
            let mut first = row.num_computed_tokens;
            while first < end {
                let positions = first..end.min(first + MAX_POSITIONS);
                first = positions.end;
                let offset = (positions.start - row.num_computed_tokens).cast_signed();
                let len = (positions.end - positions.start).cast_signed();
                let hidden = rows(hidden, row_token + offset, len)?;
                let logits = self.models[key].model.logits(&hidden)?;
                let scores = score(cache, row, positions, &logits, mode)?;
                outputs.extend(scores.arrays());
                cache.requests[row.handle as usize]
                    .as_mut()
                    .expect("the row is valid")
                    .prompt_scores
                    .append(scores);
            }
            if row.seq_len() >= row.num_prompt_tokens {
                let request = cache.requests[row.handle as usize].as_mut();
                let request = request.expect("the row is valid");
                completed.push((index, std::mem::take(&mut request.prompt_scores)));
            }
        }
        Ok(completed)
    }
}

/// What the row asks for at these positions of its prompt.
fn score(
    cache: &SessionCache,
    row: &ValidRow,
    positions: Range<u32>,
    logits: &Array,
    mode: LogprobsMode,
) -> Result<PromptScores, EngineError> {
    let mut scores = PromptScores::default();
    if let Some(num_logprobs) = row.sampling_params.prompt_logprobs {
        let slots: Vec<i32> = positions
            .clone()
            .map(|position| cache.token_table.slot(row.handle, position + 1))
            .collect();
        let slots = Array::from_slice(&slots, &[logits.shape()[0]]);
        let targets = cache.token_table.gather(&slots)?;
        let logprobs = sampler::prompt_logprobs(logits, &targets, num_logprobs, mode)?;
        scores.logprobs.push(logprobs);
    }
    if let Some(asked) = &row.sampling_params.prompt_logprob_token_ids
        && positions.end > asked.start
    {
        let first = positions.start.max(asked.start);
        let len = (positions.end - first).cast_signed();
        let logits = rows(logits, (first - positions.start).cast_signed(), len)?;
        let ids = asked_at(asked, first..positions.end);
        scores
            .token_ids
            .push(sampler::prompt_token_scores(&logits, &ids, mode)?);
    }
    Ok(scores)
}

/// The token ids that are asked for at these positions, which begin at `asked.start` or later.
fn asked_at(asked: &PromptLogprobTokenIds, positions: Range<u32>) -> Array {
    let cell = |position: u32| (position - asked.start) as usize * asked.num_columns as usize;
    let ids = &asked.token_ids.0[cell(positions.start)..cell(positions.end)];
    let rows = (positions.end - positions.start).cast_signed();
    Array::from_slice(ids, &[rows, asked.num_columns.cast_signed()])
}
