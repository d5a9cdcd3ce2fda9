//! The first half of a forward: what several sessions have ready becomes hidden states and logits.

use std::time::Instant;

use metal_rpc_kernels::start;
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};
use tracing::{debug, warn};

use super::{Engine, EngineError};
use crate::batch::{BatchedChunk, InputBatch, Sizes, array};
use crate::kv_cache::KvCache;
use crate::models::loaded::ModelKey;
use crate::reply::{PendingReply, Submitted};
use crate::session::{BegunStep, RowPart, SessionId, TokenTable};

/// What of a session's step runs in one forward.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Whose step it is.
    pub(super) session: SessionId,
    /// The step, while it is not its session's.
    pub(super) begun: BegunStep,
    /// What runs now.
    pub(super) parts: Vec<RowPart>,
}

impl Engine {
    /// Builds and submits one forward. If that fails, those of others do not depend on it.
    pub(super) fn forward(
        &mut self,
        key: &ModelKey,
        chunks: Vec<Chunk>,
    ) -> Result<(), EngineError> {
        let before = self.kv_cache(key).handles();
        let result = self.build_and_submit(key, chunks);
        if result.is_err() {
            // The next forward would otherwise wait for what this one has not computed.
            self.kv_cache(key).restore(before);
        }
        result
    }

    fn kv_cache(&mut self, key: &ModelKey) -> &mut KvCache {
        let model = self.models.get_mut(key).expect("a session keeps its model");
        &mut model.cache.as_mut().expect("steps come after the cache").kv
    }

    fn build_and_submit(
        &mut self,
        key: &ModelKey,
        mut chunks: Vec<Chunk>,
    ) -> Result<(), EngineError> {
        let now = Instant::now();
        for chunk in &mut chunks {
            chunk.begun.submitted.get_or_insert(now);
            self.write_new_tokens(chunk)?;
        }
        if let Some(sampled) = self.recordable(&chunks)? {
            return self.decode(key, chunks, sampled);
        }
        let batch = self.build_batch(key, &chunks, Sizes::Exact);
        debug!(
            num_sessions = chunks.len(),
            num_tokens = batch.num_tokens,
            "forward"
        );
        let numbers = array(&batch.numbers)?;
        let hidden = self.hidden(key, &chunks, &batch, &numbers)?;
        let last_hidden = last_hidden(&hidden, &mut chunks, &batch.sampled_tokens)?;
        let logits = match &last_hidden {
            Some(last_hidden) => {
                let logits = self.models[key].model.logits(last_hidden)?;
                Some(logits.as_dtype(Dtype::Float32)?)
            }
            None => None,
        };
        self.sample(key, chunks, (hidden, logits))
    }

    /// Puts the tokens of new requests into the session's token table.
    fn write_new_tokens(&mut self, chunk: &mut Chunk) -> Result<(), EngineError> {
        let new_tokens = std::mem::take(&mut chunk.begun.step.new_tokens);
        if new_tokens.is_empty() {
            return Ok(());
        }
        let session = self.sessions.get_mut(&chunk.session);
        let cache = session.and_then(|session| session.cache.as_mut());
        let table = &mut cache.expect("the step was applied to it").token_table;
        let mut token_ids = Vec::new();
        let mut slots = Vec::new();
        for (handle, tokens) in &new_tokens {
            token_ids.extend_from_slice(tokens);
            slots.extend(
                (0_u32..)
                    .zip(tokens)
                    .map(|(position, _)| table.slot(*handle, position)),
            );
        }
        table.write(&array(&token_ids)?, &array(&slots)?)?;
        Ok(())
    }

    pub(super) fn build_batch(&self, key: &ModelKey, chunks: &[Chunk], sizes: Sizes) -> InputBatch {
        let batched: Vec<BatchedChunk<'_>> = chunks
            .iter()
            .map(|chunk| BatchedChunk {
                step: &chunk.begun.step,
                parts: &chunk.parts,
                token_table: self.token_table(chunk),
            })
            .collect();
        let cache = self.models[key].cache.as_ref();
        let block_size = cache.expect("steps come after the cache").block_size;
        InputBatch::build(&batched, block_size, sizes)
    }

    fn token_table(&self, chunk: &Chunk) -> &TokenTable {
        let cache = self.sessions[&chunk.session].cache.as_ref();
        &cache.expect("the step was applied to it").token_table
    }

    /// The hidden states of a forward: `[num_tokens, hidden_size]`.
    ///
    /// # Shapes
    /// - `numbers`: those of `batch`, and whatever follows them, on the device
    pub(super) fn hidden(
        &mut self,
        key: &ModelKey,
        chunks: &[Chunk],
        batch: &InputBatch,
        numbers: &Array,
    ) -> Result<Array, EngineError> {
        let tables: Vec<_> = chunks.iter().map(|chunk| self.token_table(chunk)).collect();
        let input = batch.input(numbers, &tables)?;
        let model = self.models.get_mut(key).expect("a session keeps its model");
        let cache = model.cache.as_mut().expect("steps come after the cache");
        Ok(model.model.forward(&input, &mut cache.kv)?)
    }

    /// Starts the work on the device and has the reply thread wait for it.
    pub(super) fn start(
        &mut self,
        outputs: Vec<Array>,
        is_forward: bool,
        replies: Vec<PendingReply>,
    ) -> Result<(), EngineError> {
        let evaluation = start(&outputs)?;
        // What is in `replies` is the other thread's from then on: no handle of it stays here.
        drop(outputs);
        self.submit(Submitted {
            evaluation: Some(evaluation),
            is_forward,
            replies,
        });
        Ok(())
    }

    /// Has the reply thread wait for work that is started, and answer.
    pub(super) fn submit(&mut self, submitted: Submitted) {
        self.num_in_flight += usize::from(submitted.is_forward);
        if self.submitted.send(submitted).is_err() {
            warn!("the reply thread is gone");
        }
    }

    /// Answers a step that runs nothing, after those before it.
    pub(super) fn answer_empty(&mut self, id: SessionId, seq: u64, received: Instant) {
        let outbox = self.session(id).outbox.clone();
        let reply = PendingReply {
            session: id,
            outbox,
            seq,
            num_rows: 0,
            sampled_rows: Vec::new(),
            sampled: None,
            prompt_scores: Vec::new(),
            received,
            submitted: Instant::now(),
        };
        self.submit(Submitted {
            evaluation: None,
            is_forward: false,
            replies: vec![reply],
        });
    }

    /// The device has done what the steps of these sessions, the oldest ones, waited for.
    pub(super) fn completed(&mut self, sessions: &[SessionId], was_forward: bool) {
        self.num_in_flight -= usize::from(was_forward);
        for id in sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                let step = session.unanswered.pop_front();
                let num_steps = u64::from(step.is_some_and(|step| step.runs_tokens));
                session.num_steps += num_steps;
                self.served.steps += num_steps;
            }
        }
    }
}

/// The hidden states that logits are made of: `[rows, hidden_size]`, one for each row that samples
/// of the steps that end with this forward. Those of other steps are kept until they end.
fn last_hidden(
    hidden: &Array,
    chunks: &mut [Chunk],
    sampled_tokens: &[Vec<i32>],
) -> Result<Option<Array>, EngineError> {
    let mut sources = vec![hidden.clone()];
    let mut num_source_rows = hidden.shape()[0];
    let mut indices = Vec::new();
    for (Chunk { begun, .. }, sampled) in chunks.iter_mut().zip(sampled_tokens) {
        if begun.num_left() > 0 {
            if !sampled.is_empty() {
                let kept = hidden.take_axis(array(sampled)?, 0)?;
                begun.sampled_hidden.push(kept);
            }
            continue;
        }
        for earlier in begun.sampled_hidden.drain(..) {
            let end = num_source_rows + earlier.shape()[0];
            indices.extend(num_source_rows..end);
            num_source_rows = end;
            sources.push(earlier);
        }
        indices.extend(sampled);
    }
    if indices.is_empty() {
        return Ok(None);
    }
    let source = match sources.as_slice() {
        [hidden] => hidden.clone(),
        sources => concatenate(sources, 0)?,
    };
    Ok(Some(source.take_axis(array(&indices)?, 0)?))
}
