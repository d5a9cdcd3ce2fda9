//! A step between its application and its last forward.
//!
//! A frontend's step is one thing: applied at once, answered at once. In between it may run in
//! chunks, so that others run too. What a token is does not depend on how its step was cut.

use std::ops::Range;
use std::time::Instant;

use mlx_rs::Array;

use super::validate::{ValidRow, ValidStep};
use crate::sampler::PromptScores;

/// A step that was applied and has tokens left to run.
#[derive(Debug)]
pub struct BegunStep {
    /// The step.
    pub step: ValidStep,
    /// `[rows, hidden_size]` each: the last hidden states of rows that sample, chunk by chunk.
    pub sampled_hidden: Vec<Array>,
    /// Scores of the prompts that are complete.
    pub prompt_scores: Vec<(u32, PromptScores)>,
    /// When its first chunk was submitted.
    pub submitted: Option<Instant>,
    /// The row that runs next.
    next_row: usize,
    /// Tokens of that row that have run.
    next_token: u32,
    num_left: u32,
}

/// Some tokens of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowPart {
    /// Index of the row in its step.
    pub row: usize,
    /// Positions of the tokens in the request.
    pub positions: Range<u32>,
}

impl RowPart {
    /// How many tokens these are.
    #[must_use]
    pub fn num_tokens(&self) -> u32 {
        self.positions.end - self.positions.start
    }

    /// Blocks of the row's tokens up to these.
    #[must_use]
    pub fn num_blocks(&self, block_size: u32) -> usize {
        self.positions.end.div_ceil(block_size) as usize
    }

    /// Whether the row has run to its end after this, and a token is sampled.
    #[must_use]
    pub fn samples(&self, row: &ValidRow) -> bool {
        row.samples() && self.positions.end == row.seq_len()
    }
}

impl BegunStep {
    /// A step of which nothing has run.
    #[must_use]
    pub fn new(step: ValidStep) -> Self {
        Self {
            num_left: step.num_tokens,
            step,
            sampled_hidden: Vec::new(),
            prompt_scores: Vec::new(),
            submitted: None,
            next_row: 0,
            next_token: 0,
        }
    }

    /// Tokens that have not run.
    #[must_use]
    pub fn num_left(&self) -> u32 {
        self.num_left
    }

    /// The next tokens to run, at most `max_tokens`: row after row, the last one cut if it must be.
    pub fn take_chunk(&mut self, max_tokens: u32) -> Vec<RowPart> {
        let mut room = max_tokens.min(self.num_left);
        self.num_left -= room;
        let mut parts = Vec::new();
        while room > 0 {
            let row = &self.step.rows[self.next_row];
            let start = row.num_computed_tokens + self.next_token;
            let num_tokens = room.min(row.seq_len() - start);
            parts.push(RowPart {
                row: self.next_row,
                positions: start..start + num_tokens,
            });
            room -= num_tokens;
            self.next_token += num_tokens;
            if start + num_tokens == row.seq_len() {
                self.next_row += 1;
                self.next_token = 0;
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metal_rpc_protocol::SamplingParams;

    use super::*;

    /// A step of rows `(num_computed, num_scheduled)`, all of which sample.
    fn step(rows: &[(u32, u32)]) -> ValidStep {
        let row = |(handle, (computed, scheduled)): (u32, &(u32, u32))| ValidRow {
            handle,
            num_computed_tokens: *computed,
            num_scheduled_tokens: *scheduled,
            num_tokens: computed + scheduled,
            num_prompt_tokens: 1,
            num_blocks: 1,
            sampling_params: Arc::new(SamplingParams::default()),
            seed: 0,
        };
        ValidStep {
            seq: 1,
            received: Instant::now(),
            sample_follows: false,
            rows: (0..).zip(rows).map(row).collect(),
            num_tokens: rows.iter().map(|(_, scheduled)| scheduled).sum(),
            new_tokens: Vec::new(),
            block_tables: Vec::new(),
            grammar: None,
        }
    }

    #[test]
    fn the_chunks_of_a_step_are_its_tokens_in_order() {
        let rows = [(0, 5), (7, 1), (2, 9), (4, 1)];
        for max_tokens in 1..20 {
            let mut begun = BegunStep::new(step(&rows));
            let mut run = vec![Vec::new(); rows.len()];
            let mut sampled = Vec::new();
            while begun.num_left() > 0 {
                let left = begun.num_left();
                let chunk = begun.take_chunk(max_tokens);
                let num_tokens: u32 = chunk.iter().map(RowPart::num_tokens).sum();
                assert_eq!(num_tokens, left.min(max_tokens));
                assert_eq!(begun.num_left(), left - num_tokens);
                for part in chunk {
                    assert!(part.num_tokens() > 0);
                    if part.samples(&begun.step.rows[part.row]) {
                        sampled.push(part.row);
                    }
                    run[part.row].extend(part.positions);
                }
            }
            let whole =
                rows.map(|(computed, scheduled)| (computed..computed + scheduled).collect());
            assert_eq!(
                run,
                whole.to_vec() as Vec<Vec<u32>>,
                "{max_tokens} at a time"
            );
            assert_eq!(sampled, [0, 1, 2, 3]);
            assert!(begun.take_chunk(max_tokens).is_empty());
        }
    }
}
