//! Reads the results of forwards and answers the frontends.
//!
//! A thread of its own, so that the engine can build the next step while the device still runs
//! this one. It waits for arrays that the engine has submitted and handed over whole; it never
//! builds a graph, so it owns no MLX stream.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use metal_rpc_kernels::{self as kernels, Evaluation, KernelError};
use metal_rpc_protocol::{
    ErrorCode, ErrorReply, Logprobs, PromptLogprobs, PromptTokenIdLogprobs, Reply, RowError, Scope,
    StepResult,
};

use crate::engine::EngineMessage;
use crate::limits::IDLE_BEAT_MS;
use crate::outbox::Outbox;
use crate::sampler::{PromptScores, Sampled, SampledLogprobs};
use crate::session::SessionId;
use crate::watchdog::Pulse;

/// A submitted forward, the sampling of one that waited for its grammar, or steps that run nothing.
#[derive(Debug)]
pub struct Submitted {
    /// What runs; absent if nothing does.
    pub evaluation: Option<Evaluation>,
    /// It is a forward.
    pub is_forward: bool,
    /// The steps that end with it.
    pub replies: Vec<PendingReply>,
}

/// What is needed to answer one step.
#[derive(Debug)]
pub struct PendingReply {
    /// Whose step it is.
    pub session: SessionId,
    /// Where the answer goes.
    pub outbox: Outbox,
    /// `seq` of the step.
    pub seq: u64,
    /// Rows of the step.
    pub num_rows: usize,
    /// The rows that sample, in the order of `sampled`.
    pub sampled_rows: Vec<u32>,
    /// Their tokens; absent when no row samples.
    pub sampled: Option<Sampled>,
    /// Scores of prompts that this step completes.
    pub prompt_scores: Vec<(u32, PromptScores)>,
    /// When the step arrived.
    pub received: Instant,
    /// When it was submitted.
    pub submitted: Instant,
}

/// Answers everything that is submitted, in order, until the engine is gone.
pub fn run(submitted: &Receiver<Submitted>, engine: &SyncSender<EngineMessage>, pulse: &Pulse) {
    loop {
        pulse.beat();
        match submitted.recv_timeout(Duration::from_millis(IDLE_BEAT_MS)) {
            Ok(forward) => answer_all(forward, engine),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Waits for a forward and answers its steps.
pub fn answer_all(forward: Submitted, engine: &SyncSender<EngineMessage>) {
    let done = forward.evaluation.map_or(Ok(()), Evaluation::wait);
    let failed = done.err().map(|error| Failure::of(&error));
    let sessions = forward.replies.iter().map(|reply| reply.session).collect();
    let answers: Vec<_> = forward
        .replies
        .into_iter()
        .map(|reply| {
            let (outbox, seq) = (reply.outbox.clone(), reply.seq);
            let result = match &failed {
                Some(error) => Err(error.clone()),
                None => read(reply).map_err(|error| Failure::of(&error)),
            };
            (outbox, seq, result)
        })
        .collect();
    // Before the answers leave: a frontend that has one may send its next step, and the engine
    // has to know by then that this one is no longer in flight. While the daemon stops, the
    // engine is gone and what it submitted is still answered.
    let _ = engine.send(EngineMessage::Completed {
        sessions,
        was_forward: forward.is_forward,
        has_failed: failed.is_some(),
    });
    for (outbox, seq, result) in answers {
        answer(&outbox, seq, result);
    }
}

/// Why a step has no result.
#[derive(Clone, Debug)]
struct Failure {
    code: ErrorCode,
    message: String,
}

impl Failure {
    fn of(error: &KernelError) -> Self {
        let code = match error.is_out_of_memory() {
            true => ErrorCode::OutOfMemory,
            false => ErrorCode::StepFailed,
        };
        let message = format!("the device could not run the step: {error}");
        Self { code, message }
    }
}

fn answer(outbox: &Outbox, seq: u64, result: Result<StepResult, Failure>) {
    if outbox.is_closed() {
        // Built upon a step of its session that has failed since.
        return;
    }
    match result {
        Ok(result) => outbox.send(seq, Reply::StepResult(result)),
        Err(Failure { code, message }) => {
            let scope = Scope::Session;
            outbox.send_error(
                seq,
                ErrorReply {
                    code,
                    scope,
                    message,
                },
            );
            outbox.close();
        }
    }
}

fn read(reply: PendingReply) -> Result<StepResult, KernelError> {
    let mut result = StepResult {
        token_ids: vec![-1; reply.num_rows].into(),
        queue_us: micros(reply.submitted - reply.received),
        ..StepResult::default()
    };
    if let Some(sampled) = reply.sampled {
        let token_ids = kernels::to_vec_i32(&sampled.token_ids)?;
        for (row, token_id) in reply.sampled_rows.iter().zip(token_ids) {
            result.token_ids.0[*row as usize] = token_id;
            if token_id < 0 {
                let message = "logits of this request are not numbers, or no token is allowed";
                result.row_errors.push(RowError {
                    row: *row,
                    message: message.to_owned(),
                });
            }
        }
        if let Some(logprobs) = sampled.logprobs {
            let logprobs = read_logprobs(&[logprobs])?;
            result.logprobs = Some(spread(logprobs, &reply.sampled_rows, reply.num_rows));
        }
    }
    for (row, scores) in &reply.prompt_scores {
        read_prompt_scores(*row, scores, &mut result)?;
    }
    result.run_us = micros(reply.submitted.elapsed());
    Ok(result)
}

fn read_prompt_scores(
    row: u32,
    scores: &PromptScores,
    result: &mut StepResult,
) -> Result<(), KernelError> {
    if !scores.logprobs.is_empty() {
        let logprobs = read_logprobs(&scores.logprobs)?;
        result
            .prompt_logprobs
            .push(PromptLogprobs { row, logprobs });
    }
    if let Some(first) = scores.token_ids.first() {
        let mut logprobs = Vec::new();
        for chunk in &scores.token_ids {
            logprobs.extend(kernels::to_vec_f32(chunk)?);
        }
        result.prompt_token_id_logprobs.push(PromptTokenIdLogprobs {
            row,
            num_columns: first.shape()[1].cast_unsigned(),
            logprobs: logprobs.into(),
        });
    }
    Ok(())
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// Reads chunks of the same number of columns into one table.
fn read_logprobs(chunks: &[SampledLogprobs]) -> Result<Logprobs, KernelError> {
    let mut table = Logprobs {
        num_columns: 0,
        token_ids: Vec::new().into(),
        logprobs: Vec::new().into(),
        ranks: Vec::new().into(),
    };
    for chunk in chunks {
        table.num_columns = chunk.token_ids.shape()[1].cast_unsigned();
        table
            .token_ids
            .0
            .extend(kernels::to_vec_i32(&chunk.token_ids)?);
        table
            .logprobs
            .0
            .extend(kernels::to_vec_f32(&chunk.logprobs)?);
        table.ranks.0.extend(kernels::to_vec_i32(&chunk.ranks)?);
    }
    Ok(table)
}

/// Gives each row of the step a row of the table; rows that did not sample get padding.
fn spread(sampled: Logprobs, sampled_rows: &[u32], num_rows: usize) -> Logprobs {
    if sampled_rows.len() == num_rows {
        return sampled;
    }
    let columns = sampled.num_columns as usize;
    let mut table = Logprobs {
        num_columns: sampled.num_columns,
        token_ids: vec![-1; num_rows * columns].into(),
        logprobs: vec![0.0; num_rows * columns].into(),
        ranks: vec![0; num_rows].into(),
    };
    for (from, to) in sampled_rows.iter().map(|row| *row as usize).enumerate() {
        let (source, target) = (
            from * columns..(from + 1) * columns,
            to * columns..(to + 1) * columns,
        );
        table.token_ids.0[target.clone()].copy_from_slice(&sampled.token_ids.0[source.clone()]);
        table.logprobs.0[target].copy_from_slice(&sampled.logprobs.0[source]);
        table.ranks.0[to] = sampled.ranks.0[from];
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_did_not_sample_are_padded() {
        let sampled = Logprobs {
            num_columns: 2,
            token_ids: vec![7, 8, 9, 10].into(),
            logprobs: vec![-1.0, -2.0, -3.0, -4.0].into(),
            ranks: vec![1, 2].into(),
        };
        let table = spread(sampled.clone(), &[0, 2], 3);
        assert_eq!(table.token_ids.0, [7, 8, -1, -1, 9, 10]);
        assert_eq!(table.logprobs.0, [-1.0, -2.0, 0.0, 0.0, -3.0, -4.0]);
        assert_eq!(table.ranks.0, [1, 0, 2]);
        assert_eq!(spread(sampled.clone(), &[0, 1], 2), sampled);
    }
}
