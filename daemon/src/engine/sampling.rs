//! The second half of a step: logits to tokens, and what is handed to the reply thread.

use std::time::Instant;

use metal_rpc_kernels::download;
use metal_rpc_protocol::{ErrorCode, GrammarBitmask, Sample};
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;

use super::forward::Chunk;
use super::{Engine, EngineError};
use crate::batch::array;
use crate::models::loaded::ModelKey;
use crate::reply::PendingReply;
use crate::sampler::{self, LogprobsMode, PromptScores, SampleRow, Sampled};
use crate::session::state::WaitingStep;
use crate::session::validate::check_grammar;
use crate::session::{SessionCache, SessionId, ValidStep};

/// A step whose forward was submitted and whose grammar has not arrived.
#[derive(Debug)]
pub(super) struct HeldStep {
    step: ValidStep,
    logits: Option<Array>,
    prompt_scores: Vec<(u32, PromptScores)>,
    submitted: Instant,
}

impl HeldStep {
    /// `seq` of the step.
    pub(super) fn seq(&self) -> u64 {
        self.step.seq
    }
}

impl Engine {
    /// Samples the steps that end with this forward, keeps the others, and submits it all.
    ///
    /// # Shapes
    /// - `hidden`: the forward's hidden states
    /// - `logits`: one row for each row that samples of the steps that end here
    pub(super) fn sample(
        &mut self,
        key: &ModelKey,
        chunks: Vec<Chunk>,
        (hidden, logits): (Array, Option<Array>),
    ) -> Result<(), EngineError> {
        let mut outputs = Vec::new();
        let mut replies = Vec::new();
        let (mut first_row, mut first_token) = (0, 0);
        for mut chunk in chunks {
            self.prompt_scores(key, &mut chunk, (&hidden, &mut first_token), &mut outputs)?;
            let id = chunk.session;
            if chunk.begun.num_left() > 0 {
                outputs.extend(chunk.begun.sampled_hidden.last().cloned());
                self.session(id).begun = Some(chunk.begun);
                continue;
            }
            let step = chunk.begun.step;
            let num_sampled = step.rows.iter().filter(|row| row.samples()).count();
            let num_sampled = i32::try_from(num_sampled).expect("a step's size is limited");
            let step_logits = match &logits {
                Some(logits) if num_sampled > 0 => Some(rows(logits, first_row, num_sampled)?),
                _ => None,
            };
            first_row += num_sampled;
            let held = HeldStep {
                step,
                logits: step_logits,
                prompt_scores: chunk.begun.prompt_scores,
                submitted: chunk.begun.submitted.expect("its forward was built"),
            };
            if held.step.sample_follows {
                outputs.extend(held.logits.clone());
                self.held.insert(id, held);
            } else {
                replies.push(self.sample_step(id, held, &mut outputs)?);
            }
        }
        outputs.push(hidden);
        self.start(outputs, true, replies)
    }

    /// The grammar of a step has arrived: of one that is held, or of one that has not run yet.
    pub(super) fn resume(&mut self, id: SessionId, seq: u64, sample: Sample) {
        let session = self.sessions.get_mut(&id).expect("`handle` has looked");
        let is_meant = |waiting: &&mut WaitingStep| waiting.seq == sample.exec_seq;
        if let Some(waiting) = session.waiting.iter_mut().find(is_meant) {
            waiting.exec.grammar = sample.grammar;
            waiting.exec.sample_follows = false;
            return;
        }
        let begun = session.begun.as_mut().map(|begun| &mut begun.step);
        let held = self.held.get_mut(&id).map(|held| &mut held.step);
        let is_meant = |step: &&mut ValidStep| step.seq == sample.exec_seq && step.sample_follows;
        let Some(step) = begun.into_iter().chain(held).find(is_meant) else {
            let message = format!("step {} does not wait for a grammar", sample.exec_seq);
            return self.end_session(id, seq, ErrorCode::InvalidStep, message);
        };
        let vocab_size = session
            .cache
            .as_ref()
            .map_or(0, |cache| cache.limits.vocab_size);
        if let Some(grammar) = &sample.grammar
            && let Err(error) = check_grammar(grammar, step.rows.len(), vocab_size)
        {
            return self.end_session(id, seq, ErrorCode::InvalidStep, error.to_string());
        }
        step.grammar = sample.grammar;
        step.sample_follows = false;
        let Some(held) = self.held.remove(&id) else {
            return;
        };
        let step_seq = held.step.seq;
        if let Err(error) = self.sample_held(id, held) {
            let message = format!("sampling failed: {error}");
            self.end_session(id, step_seq, error.code(), message);
        }
    }

    fn sample_held(&mut self, id: SessionId, held: HeldStep) -> Result<(), EngineError> {
        let mut outputs = Vec::new();
        let reply = self.sample_step(id, held, &mut outputs)?;
        self.start(outputs, false, vec![reply])
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
            prompt_scores,
            submitted,
        } = held;
        let session = self
            .sessions
            .get_mut(&id)
            .expect("a session outlives its held step");
        let mode = session.logprobs_mode;
        let cache = session.cache.as_mut().expect("the step was applied to it");
        let sampled = match &logits {
            Some(logits) => Some(draw(cache, &step, logits, mode)?),
            None => None,
        };
        if let Some(sampled) = &sampled {
            outputs.push(cache.token_table.array().clone());
            outputs.push(sampled.token_ids.clone());
            if let Some(logprobs) = &sampled.logprobs {
                outputs.extend(logprobs.arrays().cloned());
            }
        }
        Ok(PendingReply {
            prompt_scores,
            ..self.pending_reply(id, &step, sampled, submitted)
        })
    }

    /// What the reply thread needs to answer a step without scores of prompts.
    pub(super) fn pending_reply(
        &self,
        id: SessionId,
        step: &ValidStep,
        sampled: Option<Sampled>,
        submitted: Instant,
    ) -> PendingReply {
        PendingReply {
            session: id,
            outbox: self.sessions[&id].outbox.clone(),
            seq: step.seq,
            num_rows: step.rows.len(),
            sampled_rows: sampled_rows(step),
            sampled,
            prompt_scores: Vec::new(),
            received: step.received,
            submitted,
        }
    }
}

/// Samples the rows of a step that sample, and writes their tokens into the token table.
fn draw(
    cache: &mut SessionCache,
    step: &ValidStep,
    logits: &Array,
    mode: LogprobsMode,
) -> Result<Sampled, EngineError> {
    let (rows, slots) = sample_rows(cache, step);
    let table = &mut cache.token_table;
    let mut sampled = sampler::sample(logits, &rows, table.array(), mode)?;
    table.write(&sampled.token_ids, &array(&slots)?)?;
    // The reply thread reads it.
    sampled.token_ids = download(&sampled.token_ids)?;
    Ok(sampled)
}

/// How the rows of a step that sample do it, and where their tokens go in the token table.
pub(super) fn sample_rows<'a>(
    cache: &SessionCache,
    step: &'a ValidStep,
) -> (Vec<SampleRow<'a>>, Vec<i32>) {
    let words = cache.limits.vocab_size.div_ceil(32) as usize;
    let table = &cache.token_table;
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
    (rows, slots)
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
pub(super) fn rows(array: &Array, first: i32, len: i32) -> Result<Array, EngineError> {
    if first == 0 && len == array.shape()[0] {
        return Ok(array.clone());
    }
    Ok(array.try_index(first..first + len)?)
}
