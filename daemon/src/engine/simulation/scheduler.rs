//! The steps of one frontend: what vLLM's scheduler does, as short as it can be.
//!
//! Requests open, run their prompts in chunks, decode a token a step with up to two steps in
//! flight, are preempted and resumed, and end. Every token that comes back is compared.

use std::collections::VecDeque;

use fastrand::Rng;
use metal_rpc_protocol::{Exec, NewBlocks, NewRequest, StepResult};

use super::oracle::{MAX_OUTPUTS, NUM_PROMPTS, Oracle, Question};

pub(super) const BLOCK_SIZE: u32 = 4;
pub(super) const NUM_BLOCKS: u32 = 40;
pub(super) const MAX_NUM_SEQS: u32 = 4;
pub(super) const MAX_BATCHED_TOKENS: u32 = 24;

/// A running request.
#[derive(Debug)]
struct Running {
    handle: u32,
    question: Question,
    /// Outputs after which it ends.
    num_outputs: usize,
    /// Tokens scheduled so far.
    computed: u32,
    /// Tokens known, those in flight included.
    known: u32,
    /// Tokens that came back.
    outputs: Vec<i32>,
    blocks: Vec<u32>,
    is_new: bool,
}

/// Handle of each row of a step, and whether it samples.
pub(super) type Rows = Vec<(u32, bool)>;

/// What is expected of one step.
#[derive(Debug)]
struct SentStep {
    seq: u64,
    rows: Rows,
}

/// The requests of one session.
#[derive(Debug)]
pub(super) struct Scheduler {
    model: usize,
    /// Requests that have not begun.
    pub(super) num_to_come: usize,
    running: Vec<Running>,
    sent: VecDeque<SentStep>,
    free_blocks: Vec<u32>,
    finished: Vec<u32>,
}

impl Scheduler {
    pub(super) fn new(model: usize, num_requests: usize) -> Self {
        Self {
            model,
            num_to_come: num_requests,
            running: Vec::new(),
            sent: VecDeque::new(),
            free_blocks: (1..NUM_BLOCKS).rev().collect(),
            finished: Vec::new(),
        }
    }

    /// Requests that are not complete.
    pub(super) fn num_left(&self) -> usize {
        self.num_to_come + self.running.len()
    }

    /// Steps without an answer.
    pub(super) fn num_in_flight(&self) -> usize {
        self.sent.len()
    }

    /// The outputs of the only request.
    pub(super) fn outputs(&self) -> &[i32] {
        &self.running[0].outputs
    }

    /// Opens the one request that is to be asked alone.
    pub(super) fn open_question(&mut self, question: Question) {
        self.num_to_come = 0;
        let known = u32::try_from(question.tokens().len()).expect("short");
        self.running.push(Running {
            handle: 0,
            question,
            // One more than is asked for, so that it stays.
            num_outputs: MAX_OUTPUTS + 1,
            computed: 0,
            known,
            outputs: Vec::new(),
            blocks: Vec::new(),
            is_new: true,
        });
    }

    /// The next step, if there is something to run or to end; `sent` has to follow.
    pub(super) fn next_step(&mut self, rng: &mut Rng, is_careful: bool) -> Option<(Exec, Rows)> {
        if !is_careful {
            self.open_requests(rng);
            self.preempt(rng);
        }
        let mut exec = Exec {
            finished: std::mem::take(&mut self.finished),
            ..Exec::default()
        };
        let mut rows = Rows::new();
        let mut room = MAX_BATCHED_TOKENS;
        for request in &mut self.running {
            let ends_at = prompt_len(request.question) + as_u32(request.num_outputs) - 1;
            let ready = request
                .known
                .min(ends_at)
                .saturating_sub(request.computed)
                .min(room);
            if ready == 0 {
                continue;
            }
            let count = if is_careful {
                ready
            } else {
                rng.u32(1..=ready)
            };
            room -= count;
            let samples = request.schedule(count, &mut self.free_blocks, &mut exec);
            rows.push((request.handle, samples));
        }
        if exec.handles.is_empty() && exec.finished.is_empty() {
            return None;
        }
        if !exec.handles.is_empty() && rng.u8(..8) == 0 {
            exec.sample_follows = true;
        }
        Some((exec, rows))
    }

    /// Remembers a step that was sent.
    pub(super) fn sent(&mut self, seq: u64, rows: Rows) {
        self.sent.push_back(SentStep { seq, rows });
    }

    /// Compares a result with what it must be.
    pub(super) fn receive(&mut self, seq: u64, result: &StepResult, oracle: &Oracle) {
        let step = self.sent.pop_front().expect("one result for each step");
        assert_eq!(step.seq, seq, "replies come in the order of the steps");
        assert_eq!(result.token_ids.0.len(), step.rows.len(), "one token a row");
        assert!(result.row_errors.is_empty(), "{:?}", result.row_errors);
        for ((handle, samples), token) in step.rows.into_iter().zip(&result.token_ids.0) {
            assert_eq!(
                *token >= 0,
                samples,
                "a token comes when the prompt is complete"
            );
            if !samples {
                continue;
            }
            let request = self
                .running
                .iter_mut()
                .find(|request| request.handle == handle);
            let request = request.expect("requests end when all is answered");
            let place = request.outputs.len();
            if let Some(answer) = oracle.answer(request.question) {
                assert_eq!(
                    *token, answer[place],
                    "token {place} of {:?} is not the one of its prompt alone",
                    request.question
                );
            }
            request.outputs.push(*token);
        }
        self.end_requests();
    }

    fn end_requests(&mut self) {
        let is_over = |request: &Running| request.outputs.len() >= request.num_outputs;
        for request in self.running.extract_if(.., |request| is_over(request)) {
            self.finished.push(request.handle);
            self.free_blocks.extend(request.blocks);
        }
    }

    fn open_requests(&mut self, rng: &mut Rng) {
        let is_free = |handle: &u32, running: &[Running], finished: &[u32]| {
            running.iter().all(|request| request.handle != *handle) && !finished.contains(handle)
        };
        while self.num_to_come > 0 && self.running.len() < MAX_NUM_SEQS as usize && rng.u8(..3) > 0
        {
            let question = Question {
                model: self.model,
                prompt: rng.usize(..NUM_PROMPTS),
                is_drawn: rng.bool(),
            };
            let handle = (0..2 * MAX_NUM_SEQS)
                .find(|handle| is_free(handle, &self.running, &self.finished))
                .expect("there are twice as many");
            self.num_to_come -= 1;
            self.running.push(Running {
                handle,
                question,
                num_outputs: rng.usize(1..=MAX_OUTPUTS),
                computed: 0,
                known: prompt_len(question),
                outputs: Vec::new(),
                blocks: Vec::new(),
                is_new: true,
            });
        }
    }

    /// Now and then one request loses its blocks and begins anew, with the tokens that it has.
    fn preempt(&mut self, rng: &mut Rng) {
        if !self.sent.is_empty() || self.running.is_empty() || rng.u8(..12) > 0 {
            return;
        }
        let index = rng.usize(..self.running.len());
        let request = &mut self.running[index];
        if request.is_new {
            return;
        }
        self.free_blocks.append(&mut request.blocks);
        request.computed = 0;
        request.is_new = true;
        if rng.bool() {
            self.finished.push(request.handle);
        }
    }
}

impl Running {
    /// Adds `count` of its tokens to the step, with the blocks that they need; says whether a token
    /// is sampled.
    fn schedule(&mut self, count: u32, free_blocks: &mut Vec<u32>, exec: &mut Exec) -> bool {
        let start = self.computed;
        self.computed += count;
        let needed = self.computed.div_ceil(BLOCK_SIZE) as usize - self.blocks.len();
        let added = free_blocks.split_off(free_blocks.len() - needed);
        self.blocks.extend(&added);
        if std::mem::take(&mut self.is_new) {
            let mut token_ids = self.question.tokens();
            token_ids.extend(&self.outputs);
            exec.new_requests.push(NewRequest {
                handle: self.handle,
                req_id: format!("request {}", self.handle),
                token_ids: token_ids.into(),
                num_prompt_tokens: prompt_len(self.question),
                block_ids: vec![added],
                sampling_params: self.question.sampling_params(),
            });
        } else if !added.is_empty() {
            exec.new_blocks.push(NewBlocks {
                row: as_u32(exec.handles.len()),
                block_ids: vec![added],
            });
        }
        exec.handles.push(self.handle);
        exec.num_computed_tokens.push(start);
        exec.num_scheduled_tokens.push(count);
        let samples = self.computed == self.known;
        self.known += u32::from(samples);
        samples
    }
}

fn prompt_len(question: Question) -> u32 {
    as_u32(question.tokens().len())
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).expect("small")
}
