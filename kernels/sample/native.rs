//! The sampler on the CPU: rows are independent, and each is one task's.

use std::{
    ffi::CStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    LogprobsMode, draw,
    filter::{Candidates, Filters, Rank},
    lanes,
    params::{SAMPLE_WORDS, SampleParams},
    process,
    scores::{Reported, ScoreRow, score_tokens},
};
use crate::{
    NO_TOKEN,
    node::{HostKernel, View},
    pool::{self, Shared},
};

/// Passes over the vocabulary that a row costs, about, for the pool to judge the work.
const PASSES: usize = 8;

/// One pass of the sampler.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    pub(super) rows: usize,
    pub(super) vocab_size: usize,
    pub(super) mode: LogprobsMode,
    /// Columns of the tables of scores, if there are any.
    pub(super) columns: Option<usize>,
}

impl HostKernel for Sample {
    const NAME: &'static CStr = c"sample";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let logits = inputs[0].as_slice::<f32>();
        let (params, rest) = inputs[1].as_slice::<i32>().as_chunks::<SAMPLE_WORDS>();
        assert!(rest.is_empty() && params.len() == self.rows);
        let lists = inputs.get(2).map_or(&[][..], |lists| lists.as_slice());
        let table = inputs.get(3).map_or(&[][..], |table| table.as_slice());
        let (tokens, tables) = outputs.split_at_mut(1);
        let tokens = Shared::new(tokens[0].as_mut_slice::<i32>());
        let scores = self.columns.map(|columns| Scores::new(columns, tables));

        for_each_row(self.rows, self.vocab_size * PASSES, |row, scratch| {
            let raw = &logits[row * self.vocab_size..][..self.vocab_size];
            let row_params = SampleParams::from_words(&params[row]);
            let token = match scratch.sample(raw, &row_params, lists, table) {
                NO_TOKEN => NO_TOKEN,
                drawn => row_params.traced.unwrap_or(drawn),
            };
            // SAFETY: each row is one task's.
            let own = unsafe { tokens.part(row, 1) };
            own[0] = token;
            if let Some(scores) = &scores {
                // SAFETY: each row is one task's.
                let mut out = unsafe { scores.row(row) };
                if token == NO_TOKEN || !row_params.is_scored() {
                    out.pad();
                    out.token_ids[0] = token.max(0);
                } else {
                    let values = scratch.scored(raw, &row_params, lists, self.mode);
                    let reported = match row_params.scored.of(lists) {
                        [] => Reported::MostLikely(row_params.num_scores(self.vocab_size)),
                        tokens => Reported::Tokens(tokens),
                    };
                    out.fill(values, self.mode.normalizes(), token, reported);
                }
            }
        });
    }
}

/// The scores of given tokens: those of a prompt.
#[derive(Clone, Copy)]
pub(super) struct ScoreTokens {
    pub(super) rows: usize,
    pub(super) vocab_size: usize,
    pub(super) normalize: bool,
    pub(super) columns: usize,
}

impl HostKernel for ScoreTokens {
    const NAME: &'static CStr = c"score_tokens";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let logits = inputs[0].as_slice::<f32>();
        let targets = inputs[1].as_slice::<i32>();
        let scores = Scores::new(self.columns, outputs);
        for_each_row(self.rows, self.vocab_size * PASSES, |row, _| {
            let values = &logits[row * self.vocab_size..][..self.vocab_size];
            let reported = Reported::MostLikely(self.columns - 1);
            // SAFETY: each row is one task's.
            let mut out = unsafe { scores.row(row) };
            out.fill(values, self.normalize, targets[row], reported);
        });
    }
}

/// The scores of tokens that each row names.
#[derive(Clone, Copy)]
pub(super) struct ScoreTokenIds {
    pub(super) rows: usize,
    pub(super) vocab_size: usize,
    pub(super) normalize: bool,
    pub(super) columns: usize,
}

impl HostKernel for ScoreTokenIds {
    const NAME: &'static CStr = c"score_token_ids";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let logits = inputs[0].as_slice::<f32>();
        let token_ids = inputs[1].as_slice::<i32>();
        let scores = Shared::new(outputs[0].as_mut_slice::<f32>());
        for_each_row(self.rows, self.vocab_size * PASSES, |row, _| {
            let values = &logits[row * self.vocab_size..][..self.vocab_size];
            let cells = row * self.columns..(row + 1) * self.columns;
            // SAFETY: each row is one task's.
            let own = unsafe { scores.part(cells.start, self.columns) };
            score_tokens(values, self.normalize, &token_ids[cells], own);
        });
    }
}

/// The tables of scores, written by rows.
struct Scores {
    columns: usize,
    token_ids: Shared<i32>,
    scores: Shared<f32>,
    ranks: Shared<i32>,
}

impl Scores {
    fn new(columns: usize, outputs: &mut [View<'_>]) -> Self {
        let [token_ids, scores, ranks] = outputs else {
            panic!("three tables of scores");
        };
        Self {
            columns,
            token_ids: Shared::new(token_ids.as_mut_slice()),
            scores: Shared::new(scores.as_mut_slice()),
            ranks: Shared::new(ranks.as_mut_slice()),
        }
    }

    /// # Safety
    /// The outputs are still borrowed, and each row is taken once.
    unsafe fn row(&self, row: usize) -> ScoreRow<'_> {
        // SAFETY: the caller's promise; rows do not overlap.
        unsafe {
            ScoreRow {
                token_ids: self.token_ids.part(row * self.columns, self.columns),
                scores: self.scores.part(row * self.columns, self.columns),
                rank: &mut self.ranks.part(row, 1)[0],
            }
        }
    }
}

/// Runs `task` for every row. Threads take rows as they finish, each with one scratch for all.
fn for_each_row(rows: usize, work: usize, task: impl Fn(usize, &mut Scratch) + Sync) {
    let next = AtomicUsize::new(0);
    let num_tasks = rows.min(pool::num_threads());
    pool::for_each(num_tasks, rows * work, |_| {
        let mut scratch = Scratch::default();
        loop {
            let row = next.fetch_add(1, Ordering::Relaxed);
            if row >= rows {
                break;
            }
            task(row, &mut scratch);
        }
    });
}

/// Room for one row at a time.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Logits of the row, processed; unset if they are drawn from as they are.
    logits: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f64>,
    counts: Vec<u32>,
    candidates: Candidates,
    /// The lowest token that the filters left.
    lowest: Option<Rank>,
    is_processed: bool,
}

impl Scratch {
    /// Samples one row: vLLM's `Sampler.forward`.
    pub(super) fn sample(
        &mut self,
        raw: &[f32],
        params: &SampleParams,
        lists: &[i32],
        table: &[i32],
    ) -> i32 {
        self.lowest = None;
        self.is_processed = false;
        let (mut max, has_nan) = lanes::largest(raw);
        if has_nan {
            return NO_TOKEN;
        }
        let is_greedy = params.is_greedy();
        if !params.keeps_logits() || !is_greedy {
            self.is_processed = true;
            self.logits.clear();
            self.logits.extend_from_slice(raw);
        }
        if !params.keeps_logits() {
            process::process(&mut self.logits, params, lists, table, &mut self.counts);
        }
        if !is_greedy && params.temperature != 1.0 {
            lanes::divide(&mut self.logits, params.temperature);
        }
        if self.is_processed {
            max = lanes::largest(&self.logits).0;
        }
        if max == f32::NEG_INFINITY {
            return NO_TOKEN;
        }
        let token = if is_greedy {
            let logits = if self.is_processed { &self.logits } else { raw };
            lanes::position(logits, max)
        } else if max == f32::INFINITY {
            None
        } else {
            self.draw(max, params)
        };
        token.map_or(NO_TOKEN, |token| {
            i32::try_from(token).expect("a vocabulary fits an i32")
        })
    }

    fn draw(&mut self, max: f32, params: &SampleParams) -> Option<usize> {
        let uniform = draw::uniform(params.seed, params.output_position());
        let filters = Filters {
            min_p: params.min_p,
            top_k: params.top_k as usize,
            top_p: params.top_p,
        };
        if filters.keep_all(self.logits.len()) {
            lanes::weigh(&self.logits, max, &mut self.weights, &mut self.sums);
            return draw::inverse_cdf(&self.weights, &self.sums, lanes::BLOCK, uniform);
        }
        let candidates = &mut self.candidates;
        self.lowest = Some(candidates.collect(&self.logits, max, filters));
        draw::inverse_cdf(&candidates.weights, &candidates.sums, lanes::BLOCK, uniform)
            .map(|i| candidates.tokens[i])
    }

    /// The logits to score, after [`Scratch::sample`].
    pub(super) fn scored<'a>(
        &'a mut self,
        raw: &'a [f32],
        params: &SampleParams,
        lists: &[i32],
        mode: LogprobsMode,
    ) -> &'a [f32] {
        if !mode.is_processed() {
            if params.grammar.is_empty() {
                return raw;
            }
            // vLLM's runner masks what the grammar forbids before the sampler sees the logits.
            self.logits.clear();
            self.logits.extend_from_slice(raw);
            process::mask_grammar(&mut self.logits, params.grammar.of(lists));
            return &self.logits;
        }
        if !self.is_processed {
            return raw;
        }
        if let Some(lowest) = self.lowest {
            for (token, logit) in self.logits.iter_mut().enumerate() {
                if Rank::new(token, *logit) < lowest {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        &self.logits
    }

    /// Elements of the room for logits, for weights and for counts.
    #[cfg(test)]
    pub(super) fn room(&self) -> [usize; 3] {
        [
            self.logits.capacity(),
            self.weights.capacity(),
            self.counts.capacity(),
        ]
    }
}
