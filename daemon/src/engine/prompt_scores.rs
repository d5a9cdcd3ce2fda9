//! Scores of prompt tokens, for the requests that ask for them.

use std::ops::Range;

use metal_rpc_protocol::PromptLogprobTokenIds;
use mlx_rs::{Array, Dtype};

use super::forward::Chunk;
use super::sampling::rows;
use super::{Engine, EngineError};
use crate::models::loaded::ModelKey;
use crate::sampler::{self, LogprobsMode, PromptScores};
use crate::session::sampling_params::scores_prompt;
use crate::session::{SessionCache, ValidRow};

/// Positions whose logits are in memory together: 160 MB with the largest vocabularies.
const MAX_POSITIONS: u32 = 256;

impl Engine {
    /// Scores the prompt tokens that this chunk runs; adds the scores of the prompts that it
    /// completes to its step's.
    ///
    /// # Shapes
    /// - `hidden`: the forward's hidden states, the chunk's from row `first_token` on, which is
    ///   moved behind them
    pub(super) fn prompt_scores(
        &mut self,
        key: &ModelKey,
        chunk: &mut Chunk,
        (hidden, first_token): (&Array, &mut i32),
        outputs: &mut Vec<Array>,
    ) -> Result<(), EngineError> {
        let session = self
            .sessions
            .get_mut(&chunk.session)
            .expect("the step was taken from it");
        let mode = session.logprobs_mode;
        let cache = session.cache.as_mut().expect("the step was applied to it");
        for part in &chunk.parts {
            let row = &chunk.begun.step.rows[part.row];
            let row_token = *first_token;
            *first_token += part.num_tokens().cast_signed();
            if !scores_prompt(&row.sampling_params) {
                continue;
            }
            // The last prompt token predicts the first output token: that one is sampled.
            let end = part.positions.end.min(row.num_prompt_tokens - 1);
            let mut first = part.positions.start;
            while first < end {
                let positions = first..end.min(first + MAX_POSITIONS);
                first = positions.end;
                let offset = (positions.start - part.positions.start).cast_signed();
                let len = (positions.end - positions.start).cast_signed();
                let hidden = rows(hidden, row_token + offset, len)?;
                let logits = self.models[key].model.logits(&hidden)?;
                let logits = logits.as_dtype(Dtype::Float32)?;
                let scores = score(cache, row, positions, &logits, mode)?;
                outputs.extend(scores.arrays());
                cache.requests[row.handle as usize]
                    .as_mut()
                    .expect("the row is valid")
                    .prompt_scores
                    .append(scores);
            }
            if part.positions.end >= row.num_prompt_tokens {
                let request = cache.requests[row.handle as usize].as_mut();
                let request = request.expect("the row is valid");
                let index = u32::try_from(part.row).expect("a step's size is limited");
                let scores = std::mem::take(&mut request.prompt_scores);
                chunk.begun.prompt_scores.push((index, scores));
            }
        }
        Ok(())
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
