//! Steps that decode and nothing else: where the device can, they are recorded and run again.
//!
//! Such steps come in few shapes, once the numbers of blocks, and on a GPU of requests, are rounded
//! up. The first of a shape is a rehearsal, the second is recorded, and those after it cost the host
//! an upload and a call. Everything else (prompts, masks, penalties, scores) is built anew each time.
//!
//! # Invariants
//! - A recording uses the token tables of its sessions and the cache of their model, so it goes with
//!   the first of these sessions that closes.

use metal_rpc_kernels::{
    Evaluation, PAD_SLOT, Recording, RecordingKind, SAMPLE_WORDS, SampleBatch, SampleParams,
    download, recording_kind, rehearse, sample_plain, start,
};
use mlx_rs::Array;

use super::forward::Chunk;
use super::sampling::{rows, sample_rows};
use super::{Engine, EngineError};
use crate::batch::{InputBatch, Parts, Sizes, array};
use crate::models::loaded::ModelKey;
use crate::reply::{PendingReply, Submitted};
use crate::sampler::{Sampled, compile};
use crate::session::{SessionId, ValidRow};

/// Most requests of a recorded step: with more of them the device takes longer than the host.
const MAX_ROWS: usize = 256;

/// Shapes that are remembered: on a GPU each holds the activations of its step.
const fn max_recordings(kind: RecordingKind) -> usize {
    match kind {
        RecordingKind::Launches => 24,
        RecordingKind::Calls => 256,
    }
}

/// What makes two steps launch the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    model: ModelKey,
    /// Sessions and their requests, rounded up.
    rows: Vec<(SessionId, usize)>,
    max_blocks: usize,
}

/// What is known of a shape.
#[derive(Debug)]
enum Seen {
    /// It was built, or its recording found no memory.
    Once,
    /// Its steps can be run again.
    Recorded(Recording),
    /// The model has a node that cannot be recorded.
    Unrecordable,
}

/// Shapes that have been seen, the one used last at the end.
#[derive(Debug, Default)]
pub(super) struct Recordings(Vec<(Shape, Seen)>);

impl Recordings {
    /// Forgets what uses memory of a session.
    pub(super) fn forget(&mut self, id: SessionId) {
        self.0
            .retain(|(shape, _)| shape.rows.iter().all(|(session, _)| *session != id));
    }

    fn take(&mut self, shape: &Shape) -> Option<Seen> {
        let index = self.0.iter().position(|(seen, _)| seen == shape)?;
        Some(self.0.remove(index).1)
    }

    fn put(&mut self, shape: Shape, seen: Seen, kind: RecordingKind) {
        if self.0.len() == max_recordings(kind) {
            self.0.remove(0);
        }
        self.0.push((shape, seen));
    }
}

/// What the rows of a chunk are sampled by, and where in its table their tokens go.
#[derive(Debug)]
pub(super) struct SampledRows {
    params: SampleBatch,
    slots: Vec<i32>,
}

/// The numbers of the forward, then how its rows sample, then where their tokens go.
fn all_numbers(batch: &InputBatch, sampled: Vec<SampledRows>) -> Vec<i32> {
    let mut numbers = batch.numbers.clone();
    let mut all_slots = Vec::with_capacity(batch.num_tokens as usize);
    for (mut rows, num_rows) in sampled.into_iter().zip(&batch.chunk_tokens) {
        let nothing = SampleParams {
            temperature: 0.0,
            ..SampleParams::default()
        };
        rows.params.rows.resize(*num_rows, nothing);
        rows.slots.resize(*num_rows, PAD_SLOT);
        numbers.extend(rows.params.words());
        all_slots.extend(rows.slots);
    }
    numbers.extend(all_slots);
    numbers
}

impl Engine {
    /// How the rows of each chunk sample, if these are decodes that can be recorded.
    pub(super) fn recordable(
        &self,
        chunks: &[Chunk],
    ) -> Result<Option<Vec<SampledRows>>, EngineError> {
        if recording_kind()?.is_none() {
            return Ok(None);
        }
        let num_rows: usize = chunks.iter().map(|chunk| chunk.parts.len()).sum();
        let decodes = |chunk: &Chunk| {
            let step = &chunk.begun.step;
            let samples = chunk
                .parts
                .iter()
                .all(|part| part.num_tokens() == 1 && part.samples(&step.rows[part.row]));
            samples
                && chunk.parts.len() == step.rows.len()
                && !step.sample_follows
                && step.grammar.is_none()
        };
        if num_rows > MAX_ROWS || !chunks.iter().all(decodes) {
            return Ok(None);
        }
        let mut sampled = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let asks_of_prompt = |row: &ValidRow| row.num_computed_tokens < row.num_prompt_tokens;
            if chunk.begun.step.rows.iter().any(asks_of_prompt) {
                return Ok(None);
            }
            let cache = self.sessions[&chunk.session].cache.as_ref();
            let cache = cache.expect("the step was applied to it");
            let (rows, slots) = sample_rows(cache, &chunk.begun.step);
            let params = compile(&rows)?;
            if !params.is_plain() {
                return Ok(None);
            }
            sampled.push(SampledRows { params, slots });
        }
        Ok(Some(sampled))
    }

    /// Runs decodes: built anew, recorded, or as they were recorded.
    pub(super) fn decode(
        &mut self,
        key: &ModelKey,
        chunks: Vec<Chunk>,
        sampled: Vec<SampledRows>,
    ) -> Result<(), EngineError> {
        let kind = recording_kind()?.expect("`recordable` has looked");
        let sizes = match kind {
            RecordingKind::Launches => Sizes::BlocksAndRows,
            // A row more costs time.
            RecordingKind::Calls => Sizes::Blocks,
        };
        let batch = self.build_batch(key, &chunks, sizes);
        let numbers = all_numbers(&batch, sampled);
        let sessions = chunks.iter().map(|chunk| chunk.session);
        let shape = Shape {
            model: key.clone(),
            rows: sessions.zip(batch.chunk_tokens.iter().copied()).collect(),
            max_blocks: batch.max_blocks,
        };
        let ((tokens, evaluation), seen) = match self.recordings.take(&shape) {
            Some(Seen::Recorded(recording)) => {
                (recording.replay(&numbers)?, Seen::Recorded(recording))
            }
            Some(Seen::Once) => {
                let (begun, recording) = self.record(key, &chunks, &batch, &numbers)?;
                let seen = match kind {
                    _ if recording.is_complete() => Seen::Recorded(recording),
                    RecordingKind::Launches => Seen::Once,
                    RecordingKind::Calls => Seen::Unrecordable,
                };
                (begun, seen)
            }
            seen => {
                let mut outputs = self.decode_outputs(key, &chunks, &batch, &array(&numbers)?)?;
                outputs[0] = download(&outputs[0])?;
                rehearse()?;
                let evaluation = start(&outputs)?;
                ((outputs, evaluation), seen.unwrap_or(Seen::Once))
            }
        };
        self.recordings.put(shape, seen, kind);
        let replies = self.decode_replies(chunks, &batch, &tokens[0])?;
        self.submit(Submitted {
            evaluation: Some(evaluation),
            is_forward: true,
            replies,
        });
        Ok(())
    }

    /// Runs decodes and records how.
    fn record(
        &mut self,
        key: &ModelKey,
        chunks: &[Chunk],
        batch: &InputBatch,
        numbers: &[i32],
    ) -> Result<((Vec<Array>, Evaluation), Recording), EngineError> {
        let mut recording = Recording::new(numbers.len())?.expect("`recordable` has looked");
        let outputs = self.decode_outputs(key, chunks, batch, recording.numbers())?;
        let outputs: Vec<&Array> = outputs.iter().collect();
        let begun = recording.record(numbers, &outputs, 1)?;
        Ok((begun, recording))
    }

    /// The graph of a step of decodes: the tokens of all rows, then what else has to be computed.
    fn decode_outputs(
        &mut self,
        key: &ModelKey,
        chunks: &[Chunk],
        batch: &InputBatch,
        numbers: &Array,
    ) -> Result<Vec<Array>, EngineError> {
        let hidden = self.hidden(key, chunks, batch, numbers)?;
        let logits = self.models[key].model.logits(&hidden)?;
        let mut parts = Parts::after(numbers, batch.numbers.len());
        let params = parts.next(&[batch.num_tokens as usize, SAMPLE_WORDS])?;
        let tokens = sample_plain(&logits, &params)?;
        let mut outputs = vec![tokens.clone()];
        let mut first_row = 0;
        for (chunk, &num_rows) in chunks.iter().zip(&batch.chunk_tokens) {
            let slots = parts.next(&[num_rows])?;
            let num_rows = i32::try_from(num_rows).expect("a step's size is limited");
            let cache = self.session(chunk.session).cache.as_mut();
            let table = &mut cache.expect("the step was applied to it").token_table;
            table.write(&rows(&tokens, first_row, num_rows)?, &slots)?;
            outputs.push(table.array().clone());
            first_row += num_rows;
        }
        Ok(outputs)
    }

    /// What the reply thread needs: the tokens of all rows, those of each step with its answer.
    fn decode_replies(
        &self,
        chunks: Vec<Chunk>,
        batch: &InputBatch,
        tokens: &Array,
    ) -> Result<Vec<PendingReply>, EngineError> {
        let mut parts = Parts::new(tokens);
        let mut replies = Vec::with_capacity(chunks.len());
        for (chunk, num_rows) in chunks.into_iter().zip(&batch.chunk_tokens) {
            let sampled = Sampled {
                token_ids: parts.next(&[*num_rows])?,
                logprobs: None,
            };
            let submitted = chunk.begun.submitted.expect("its forward was built");
            let step = &chunk.begun.step;
            replies.push(self.pending_reply(chunk.session, step, Some(sampled), submitted));
        }
        Ok(replies)
    }
}
