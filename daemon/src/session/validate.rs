//! A step from the wire, applied to the session's state and checked on the way.
//!
//! [`ValidStep`] is the proof of the check: every handle is known, every block translated, every
//! position within its request. Nothing after this takes the wire type.
//!
//! A step is applied when its turn has come, not when it arrives, because the step before it may
//! still use what it gives back. A step that breaks a rule ends its session: the scheduler and the
//! daemon would disagree from there on.

use std::sync::Arc;
use std::time::Instant;

use metal_rpc_protocol::{Exec, GrammarBitmask, NewBlocks, NewRequest, SamplingParams};

use super::block_tables::{RequestBlocks, RowTokens};
use super::request_state::CachedRequestState;
use super::sampling_params;
use super::state::{SessionCache, SessionLimits};
use super::step_error::StepError;
use crate::kv_cache::BlockPool;
use crate::sampler::PromptScores;

/// A step that has been checked and applied.
#[derive(Debug)]
pub struct ValidStep {
    /// `seq` of the message.
    pub seq: u64,
    /// When it arrived.
    pub received: Instant,
    /// Whether sampling waits for a grammar that follows.
    pub sample_follows: bool,
    /// The requests, in the order of the reply's rows.
    pub rows: Vec<ValidRow>,
    /// Tokens of all rows.
    pub num_tokens: u32,
    /// Token ids of new requests, for the token table.
    pub new_tokens: Vec<(u32, Vec<i32>)>,
    /// Pool blocks of all rows, one after the other, for each KV-cache group.
    pub block_tables: Vec<Vec<i32>>,
    /// The grammar, if it came with the step.
    pub grammar: Option<GrammarBitmask>,
}

/// One request of a step.
#[derive(Clone, Debug)]
pub struct ValidRow {
    /// The request's row in the token table.
    pub handle: u32,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: u32,
    /// Tokens to run, at least one.
    pub num_scheduled_tokens: u32,
    /// Tokens known before this step samples.
    pub num_tokens: u32,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Entries of this row in each of [`ValidStep::block_tables`].
    pub num_blocks: u32,
    /// How its tokens are sampled.
    pub sampling_params: Arc<SamplingParams>,
    /// What its draws depend on, beside the output position.
    pub seed: u64,
}

impl ValidRow {
    /// Computed and scheduled tokens: vLLM's `seq_lens`.
    #[must_use]
    pub fn seq_len(&self) -> u32 {
        self.num_computed_tokens + self.num_scheduled_tokens
    }

    /// Whether this step completes the known tokens, so that a new one is sampled.
    #[must_use]
    pub fn samples(&self) -> bool {
        self.seq_len() == self.num_tokens
    }
}

impl SessionCache {
    /// Applies a step to the session.
    ///
    /// # Errors
    /// [`StepError`]; the session's state is then undefined and the session must be closed.
    pub fn apply(
        &mut self,
        (seq, received): (u64, Instant),
        exec: Exec,
        pool: &mut BlockPool,
    ) -> Result<ValidStep, StepError> {
        check_counts(&exec, &self.limits)?;
        for handle in &exec.finished {
            self.take_request(*handle)?;
        }
        let mut new_tokens = Vec::with_capacity(exec.new_requests.len());
        for request in exec.new_requests {
            new_tokens.push(self.open_request(request)?);
        }
        for blocks in exec.new_blocks {
            self.append_blocks(&exec.handles, blocks)?;
        }
        let mut step = ValidStep {
            seq,
            received,
            sample_follows: exec.sample_follows,
            rows: Vec::with_capacity(exec.handles.len()),
            num_tokens: 0,
            new_tokens,
            block_tables: vec![Vec::new(); self.table_rules.windows.len()],
            grammar: exec.grammar,
        };
        let mut seen = vec![false; self.requests.len()];
        let mut num_tokens = 0_u64;
        for (index, handle) in exec.handles.iter().enumerate() {
            let num_scheduled = exec.num_scheduled_tokens.get(index).copied().unwrap_or(1);
            num_tokens += u64::from(num_scheduled);
            let computed = exec.num_computed_tokens[index];
            let row = self.schedule(
                (*handle, computed, num_scheduled),
                pool,
                &mut step.block_tables,
            )?;
            if std::mem::replace(&mut seen[*handle as usize], true) {
                return Err(StepError::DuplicateHandle { handle: *handle });
            }
            step.rows.push(row);
        }
        // The tokens of a request are written with the step that runs it first.
        let is_run = |(handle, _): &&(u32, Vec<i32>)| seen[*handle as usize];
        if let Some((handle, _)) = step.new_tokens.iter().find(|new| !is_run(new)) {
            return Err(StepError::NotRun { handle: *handle });
        }
        let limit = self.limits.max_num_batched_tokens;
        step.num_tokens = u32::try_from(num_tokens)
            .ok()
            .filter(|count| *count <= limit)
            .ok_or(StepError::TooManyTokens {
                actual: num_tokens,
                limit,
            })?;
        if let Some(grammar) = &step.grammar {
            check_grammar(grammar, step.rows.len(), self.limits.vocab_size)?;
        }
        Ok(step)
    }

    fn take_request(&mut self, handle: u32) -> Result<CachedRequestState, StepError> {
        self.requests
            .get_mut(handle as usize)
            .and_then(Option::take)
            .ok_or(StepError::UnknownHandle { handle })
    }

    /// Opens a request, or replaces the state of a known one. Returns its tokens.
    fn open_request(&mut self, request: NewRequest) -> Result<(u32, Vec<i32>), StepError> {
        let NewRequest {
            handle,
            req_id,
            token_ids,
            num_prompt_tokens,
            block_ids,
            sampling_params: params,
        } = request;
        let limits = &self.limits;
        let num_handles = self.token_table.num_rows();
        if handle >= num_handles {
            return Err(StepError::HandleOutOfRange {
                handle,
                limit: num_handles,
            });
        }
        let actual = token_ids.0.len();
        let num_tokens = u32::try_from(actual)
            .ok()
            .filter(|n| *n <= limits.max_model_len);
        let Some(num_tokens) = num_tokens else {
            return Err(StepError::TooLong {
                req_id,
                actual,
                limit: limits.max_model_len,
            });
        };
        if num_prompt_tokens == 0 || num_prompt_tokens > num_tokens {
            return Err(StepError::PromptLength {
                req_id,
                num_prompt_tokens,
                actual,
            });
        }
        let vocab_size = limits.vocab_size;
        let is_bad = |id: &i32| u32::try_from(*id).map_or(true, |id| id >= vocab_size);
        if let Some(position) = token_ids.0.iter().position(is_bad) {
            return Err(StepError::TokenOutOfRange {
                req_id,
                position,
                vocab_size,
            });
        }
        sampling_params::check(&req_id, &params, num_prompt_tokens, vocab_size)?;
        let mut blocks = RequestBlocks::default();
        blocks.append(&req_id, block_ids, &self.table_rules)?;
        let seed = match params.seed {
            Some(seed) => seed.cast_unsigned(),
            None => self.seeds.next_seed(),
        };
        self.requests[handle as usize] = Some(CachedRequestState {
            req_id,
            num_prompt_tokens,
            num_tokens,
            blocks,
            sampling_params: Arc::new(params),
            seed,
            prompt_scores: PromptScores::default(),
        });
        Ok((handle, token_ids.0))
    }

    fn append_blocks(&mut self, handles: &[u32], blocks: NewBlocks) -> Result<(), StepError> {
        let NewBlocks { row, block_ids } = blocks;
        let handle = *handles.get(row as usize).ok_or(StepError::RowOutOfRange {
            name: "new_blocks",
            row,
            rows: handles.len(),
        })?;
        let request = match self.requests.get_mut(handle as usize) {
            Some(Some(request)) => request,
            _ => return Err(StepError::UnknownHandle { handle }),
        };
        request
            .blocks
            .append(&request.req_id, block_ids, &self.table_rules)
    }

    /// Checks one row, appends its pool blocks to `block_tables` and counts the token it samples.
    fn schedule(
        &mut self,
        (handle, num_computed, num_scheduled): (u32, u32, u32),
        pool: &mut BlockPool,
        block_tables: &mut [Vec<i32>],
    ) -> Result<ValidRow, StepError> {
        let row_len = self.token_table.row_len();
        let request = match self.requests.get_mut(handle as usize) {
            Some(Some(request)) => request,
            _ => return Err(StepError::UnknownHandle { handle }),
        };
        let req_id = &request.req_id;
        if num_scheduled == 0 {
            return Err(StepError::NoTokens {
                req_id: req_id.clone(),
            });
        }
        let end = u64::from(num_computed) + u64::from(num_scheduled);
        let num_tokens = request.num_tokens;
        let Some(seq_len) = u32::try_from(end)
            .ok()
            .filter(|end| *end <= num_tokens && *end < row_len)
        else {
            let req_id = req_id.clone();
            return Err(StepError::BeyondKnownTokens {
                req_id,
                num_computed,
                end,
                num_tokens,
            });
        };
        let tokens = RowTokens {
            num_computed,
            seq_len,
        };
        request.blocks.translate(
            (req_id, tokens),
            &self.table_rules,
            (&mut self.block_map, pool),
            block_tables,
        )?;
        if seq_len == num_tokens {
            request.num_tokens += 1;
        }
        Ok(ValidRow {
            handle,
            num_computed_tokens: num_computed,
            num_scheduled_tokens: num_scheduled,
            num_tokens,
            num_prompt_tokens: request.num_prompt_tokens,
            num_blocks: seq_len.div_ceil(self.table_rules.block_size),
            sampling_params: Arc::clone(&request.sampling_params),
            seed: request.seed,
        })
    }
}

fn check_counts(exec: &Exec, limits: &SessionLimits) -> Result<(), StepError> {
    let rows = exec.handles.len();
    if rows > limits.max_num_seqs as usize {
        return Err(StepError::TooManyRequests {
            actual: rows,
            limit: limits.max_num_seqs,
        });
    }
    let actual = exec.num_computed_tokens.len();
    if actual != rows {
        return Err(StepError::RowCount {
            name: "num_computed_tokens",
            rows,
            actual,
        });
    }
    let actual = exec.num_scheduled_tokens.len();
    if actual != 0 && actual != rows {
        return Err(StepError::RowCount {
            name: "num_scheduled_tokens",
            rows,
            actual,
        });
    }
    if !exec.block_copies.is_empty() {
        return Err(StepError::BlockCopies);
    }
    if exec.sample_follows && exec.grammar.is_some() {
        return Err(StepError::GrammarTwice);
    }
    Ok(())
}

/// Checks a bitmask against the step that it belongs to.
///
/// # Errors
/// [`StepError::RowOutOfRange`], [`StepError::BitmaskSize`].
pub fn check_grammar(
    grammar: &GrammarBitmask,
    num_rows: usize,
    vocab_size: u32,
) -> Result<(), StepError> {
    if let Some(row) = grammar.rows.iter().find(|row| **row as usize >= num_rows) {
        return Err(StepError::RowOutOfRange {
            name: "grammar",
            row: *row,
            rows: num_rows,
        });
    }
    let expected = grammar.rows.len() * vocab_size.div_ceil(32) as usize;
    let actual = grammar.bitmask.0.len();
    if actual != expected {
        return Err(StepError::BitmaskSize {
            rows: grammar.rows.len(),
            actual,
            expected,
        });
    }
    Ok(())
}
