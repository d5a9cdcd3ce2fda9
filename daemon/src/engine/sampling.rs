//! The second half of a step: logits to tokens, and what is handed to the reply thread.

use std::time::Instant;

use metal_rpc_protocol::{ErrorCode, GrammarBitmask, Sample};
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;

use super::{Engine, EngineError};
use crate::models::loaded::ModelKey;
use crate::reply::{PendingReply, Submitted};
use crate::sampler::{self, LogprobsMode, SampleRow, Sampled, SampledLogprobs};
use crate::session::state::WaitingStep;
use crate::session::validate::check_grammar;
use crate::session::{SessionCache, SessionId, ValidStep};

/// A step whose forward was submitted and whose grammar has not arrived.
#[derive(Debug)]
pub(super) struct HeldStep {
    step: ValidStep,
    logits: Option<Array>,
    prompt_logprobs: Vec<(u32, Vec<SampledLogprobs>)>,
    submitted: Instant,
}

impl Engine {
    /// Samples the steps of one forward and submits it all.
    pub(super) fn sample(
        &mut self,
        key: &ModelKey,
        steps: Vec<(SessionId, ValidStep)>,
        (hidden, logits): (Array, Option<Array>),
        submitted: Instant,
    ) -> Result<(), EngineError> {
        let mut outputs = Vec::new();
        let mut replies = Vec::new();
        let (mut first_row, mut first_token) = (0, 0);
        for (id, step) in steps {
            let num_sampled = step.rows.iter().filter(|row| row.samples()).count();
            let num_sampled = i32::try_from(num_sampled).expect("a step's size is limited");
            let step_logits = match &logits {
                Some(logits) if num_sampled > 0 => Some(rows(logits, first_row, num_sampled)?),
                _ => None,
            };
            first_row += num_sampled;
            let prompt_logprobs =
                self.prompt_logprobs(key, id, &step, (&hidden, first_token), &mut outputs)?;
            first_token += step.num_tokens.cast_signed();
            let held = HeldStep {
                step,
                logits: step_logits,
                prompt_logprobs,
                submitted,
            };
            if held.step.sample_follows {
                outputs.extend(held.logits.clone());
                self.held.insert(id, held);
            } else {
                replies.push(self.sample_step(id, held, &mut outputs)?);
            }
        }
        outputs.push(hidden.clone());
        self.submit(
            outputs,
            Submitted {
                done: Some(hidden),
                replies,
            },
        )
    }

    /// The grammar of a step has arrived: of one that is held, or of one that still waits.
    pub(super) fn resume(&mut self, id: SessionId, seq: u64, sample: Sample) {
        let session = self.sessions.get_mut(&id).expect("`handle` has looked");
        let is_meant = |waiting: &&mut WaitingStep| waiting.seq == sample.exec_seq;
        if let Some(waiting) = session.waiting.iter_mut().find(is_meant) {
            waiting.exec.grammar = sample.grammar;
            waiting.exec.sample_follows = false;
            return;
        }
        let Some(mut held) = self
            .held
            .remove(&id)
            .filter(|held| held.step.seq == sample.exec_seq)
        else {
            let message = format!("step {} does not wait for a grammar", sample.exec_seq);
            return self.end_session(id, seq, ErrorCode::InvalidStep, message);
        };
        let vocab_size = session
            .cache
            .as_ref()
            .map_or(0, |cache| cache.limits.vocab_size);
        if let Some(grammar) = &sample.grammar
            && let Err(error) = check_grammar(grammar, held.step.rows.len(), vocab_size)
        {
            return self.end_session(id, seq, ErrorCode::InvalidStep, error.to_string());
        }
        let step_seq = held.step.seq;
        held.step.grammar = sample.grammar;
        if let Err(error) = self.sample_held(id, held) {
            let message = format!("sampling failed: {error}");
            self.end_session(id, step_seq, ErrorCode::StepFailed, message);
        }
    }

    fn sample_held(&mut self, id: SessionId, held: HeldStep) -> Result<(), EngineError> {
        let mut outputs = Vec::new();
        let reply = self.sample_step(id, held, &mut outputs)?;
        self.submit(
            outputs,
            Submitted {
                done: None,
                replies: vec![reply],
            },
        )
    }

    /// Adds the sampling of one step to the graph, and its tokens to the session's token table.
    fn sample_step(
        &mut self,
        id: SessionId,
        held: HeldStep,
        outputs: &mut Vec<Array>,
    ) -> Result<PendingReply, EngineError> {
        let HeldStep {
            step,
            logits,
            prompt_logprobs,
            submitted,
        } = held;
        let session = self
            .sessions
            .get_mut(&id)
            .expect("a session outlives its held step");
        let mode = session.logprobs_mode;
        let outbox = session.outbox.clone();
        let cache = session.cache.as_mut().expect("the step was applied to it");
        let sampled = match &logits {
            Some(logits) => Some(draw(cache, &step, logits, mode)?),
            None => None,
        };
        if let Some(sampled) = &sampled {
            outputs.push(cache.token_table.array().clone());
            outputs.push(sampled.token_ids.clone());
            if let Some(logprobs) = &sampled.logprobs {
                outputs.extend(arrays_of(logprobs));
            }
        }
        Ok(PendingReply {
            session: id,
            outbox,
            seq: step.seq,
            num_rows: step.rows.len(),
            sampled_rows: sampled_rows(&step),
            sampled,
            prompt_logprobs,
            received: step.received,
            submitted,
        })
    }

    /// Adds the log probabilities of the prompt tokens that this step runs; returns those of the
    /// prompts that it completes.
    fn prompt_logprobs(
        &mut self,
        key: &ModelKey,
        id: SessionId,
        step: &ValidStep,
        (hidden, mut first_token): (&Array, i32),
        outputs: &mut Vec<Array>,
    ) -> Result<Vec<(u32, Vec<SampledLogprobs>)>, EngineError> {
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
            let Some(num_logprobs) = row.sampling_params.prompt_logprobs else {
                continue;
            };
            // The last prompt token predicts the first output token: that one is sampled.
            let end = row.seq_len().min(row.num_prompt_tokens - 1);
            let request = cache.requests[row.handle as usize]
                .as_mut()
                .expect("the row is valid");
            if row.num_computed_tokens < end {
                let len = end - row.num_computed_tokens;
                let hidden = rows(hidden, row_token, len.cast_signed())?;
                let slots: Vec<i32> = (row.num_computed_tokens..end)
                    .map(|position| cache.token_table.slot(row.handle, position + 1))
                    .collect();
                let slots = Array::from_slice(&slots, &[len.cast_signed()]);
                let targets = cache.token_table.gather(&slots)?;
                let logits = self.models[key].model.logits(&hidden)?;
                let logprobs = sampler::prompt_logprobs(&logits, &targets, num_logprobs, mode)?;
                outputs.extend(arrays_of(&logprobs));
                request.prompt_logprobs.push(logprobs);
            }
            if row.seq_len() >= row.num_prompt_tokens && !request.prompt_logprobs.is_empty() {
                completed.push((index, std::mem::take(&mut request.prompt_logprobs)));
            }
        }
        Ok(completed)
    }
}

/// Samples the rows of a step that sample, and writes their tokens into the token table.
fn draw(
    cache: &mut SessionCache,
    step: &ValidStep,
    logits: &Array,
    mode: LogprobsMode,
) -> Result<Sampled, EngineError> {
    let words = cache.limits.vocab_size.div_ceil(32) as usize;
    let table = &mut cache.token_table;
    let mut rows = Vec::new();
    let mut slots = Vec::new();
    for (index, row) in (0_u32..).zip(&step.rows).filter(|(_, row)| row.samples()) {
        rows.push(SampleRow {
            params: &row.sampling_params,
            seed: row.seed,
            table_offset: table.slot(row.handle, 0).unsigned_abs() as usize,
            num_prompt_tokens: row.num_prompt_tokens,
            num_tokens: row.num_tokens,
            grammar: step
                .grammar
                .as_ref()
                .and_then(|grammar| bitmask_of(grammar, index, words)),
        });
        slots.push(table.slot(row.handle, row.num_tokens));
    }
    let sampled = sampler::sample(logits, &rows, table.array(), mode)?;
    let len = i32::try_from(slots.len()).expect("a step's size is limited");
    table.write(&sampled.token_ids, &Array::from_slice(&slots, &[len]))?;
    Ok(sampled)
}

fn bitmask_of(grammar: &GrammarBitmask, row: u32, words: usize) -> Option<&[i32]> {
    let index = grammar.rows.iter().position(|bound| *bound == row)?;
    Some(&grammar.bitmask.0[index * words..(index + 1) * words])
}

fn sampled_rows(step: &ValidStep) -> Vec<u32> {
    (0_u32..)
        .zip(&step.rows)
        .filter(|(_, row)| row.samples())
        .map(|(index, _)| index)
        .collect()
}

/// `len` rows from `first` on; the array itself if these are all.
fn rows(array: &Array, first: i32, len: i32) -> Result<Array, EngineError> {
    if first == 0 && len == array.shape()[0] {
        return Ok(array.clone());
    }
    Ok(array.try_index(first..first + len)?)
}

fn arrays_of(logprobs: &SampledLogprobs) -> [Array; 3] {
    [
        logprobs.token_ids.clone(),
        logprobs.logprobs.clone(),
        logprobs.ranks.clone(),
    ]
}
