//! The steps of one or more sessions, laid out flat for one forward.
//!
//! # Layout
//! - [`InputBatch`]: the arrays of one forward
//! - [`admission`]: which steps run together, and when
//! - [`turns`]: which model is next; [`shares`]: how much of each step runs

pub mod admission;
pub mod shares;
pub mod turns;

use metal_rpc_kernels::{AttentionMetadata, KernelError, PAD_SLOT, gather_slots_of, part, upload};
use mlx_rs::Array;

use crate::models::{ForwardInput, GroupInput};
use crate::session::{RowPart, TokenTable, ValidStep};

/// One session's part of a forward.
#[derive(Debug)]
pub struct BatchedChunk<'a> {
    /// The step.
    pub step: &'a ValidStep,
    /// What of it runs in this forward.
    pub parts: &'a [RowPart],
    /// Tokens of its requests, new ones already written.
    pub token_table: &'a TokenTable,
}

/// How large the arrays of a forward are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// As large as they must be.
    Exact,
    /// Rounded up, so that the same sizes come again: the width of the block tables.
    Blocks,
    /// That, and requests of each session, of one token that goes nowhere.
    BlocksAndRows,
}

/// The numbers of one forward, requests of one session after those of another.
#[derive(Debug)]
pub struct InputBatch {
    /// All of them, to be uploaded at once.
    pub numbers: Vec<i32>,
    /// By session: the last token of each request that samples, as an index into the forward's
    /// tokens.
    pub sampled_tokens: Vec<Vec<i32>>,
    /// Tokens in the forward.
    pub num_tokens: u32,
    /// By session: tokens.
    pub chunk_tokens: Vec<usize>,
    /// Entries of a row of the block tables.
    pub max_blocks: usize,
    num_reqs: usize,
    num_groups: usize,
}

impl InputBatch {
    /// Lays out `chunks`.
    #[must_use]
    pub fn build(chunks: &[BatchedChunk<'_>], block_size: u32, sizes: Sizes) -> Self {
        let mut layout = Layout::default();
        for chunk in chunks {
            layout.add_chunk(chunk, block_size);
            if sizes == Sizes::BlocksAndRows {
                layout.round_chunk();
            }
        }
        layout.finish(sizes)
    }

    /// What the model reads.
    ///
    /// # Shapes
    /// - `numbers`: [`numbers`](Self::numbers) as an array, and whatever follows them
    /// - `token_tables`: that of each chunk, new tokens already written
    ///
    /// # Errors
    /// If MLX refuses an array.
    pub fn input(
        &self,
        numbers: &Array,
        token_tables: &[&TokenTable],
    ) -> Result<ForwardInput, KernelError> {
        let mut parts = Parts::new(numbers);
        let mut slots = Vec::with_capacity(token_tables.len());
        for (token_table, num_tokens) in token_tables.iter().zip(&self.chunk_tokens) {
            slots.push((token_table.array(), parts.next(&[*num_tokens])?));
        }
        let slots: Vec<_> = slots.iter().map(|(table, slots)| (*table, slots)).collect();
        let token_ids = gather_slots_of(&slots)?;
        let num_tokens = self.num_tokens as usize;
        let positions = parts.next(&[num_tokens])?;
        let query_start_loc = parts.next(&[self.num_reqs + 1])?;
        let seq_lens = parts.next(&[self.num_reqs])?;
        let mut group = || {
            Ok(GroupInput {
                slot_mapping: parts.next(&[num_tokens])?,
                attention: AttentionMetadata {
                    block_table: parts.next(&[self.num_reqs, self.max_blocks])?,
                    query_start_loc: query_start_loc.clone(),
                    seq_lens: seq_lens.clone(),
                },
            })
        };
        let groups = (0..self.num_groups).map(|_| group());
        let groups = groups.collect::<Result<_, KernelError>>()?;
        Ok(ForwardInput {
            token_ids,
            positions,
            groups,
        })
    }
}

/// Takes arrays out of one that holds them one after the other.
#[derive(Debug)]
pub struct Parts<'a> {
    numbers: &'a Array,
    first: usize,
}

impl<'a> Parts<'a> {
    /// From the beginning of `numbers`, which is evaluated.
    #[must_use]
    pub fn new(numbers: &'a Array) -> Self {
        Self::after(numbers, 0)
    }

    /// From the number `first` on.
    #[must_use]
    pub fn after(numbers: &'a Array, first: usize) -> Self {
        Self { numbers, first }
    }

    /// The next one.
    ///
    /// # Errors
    /// If there are fewer numbers.
    pub fn next(&mut self, shape: &[usize]) -> Result<Array, KernelError> {
        let dims: Vec<i32> = shape.iter().copied().map(to_i32).collect();
        let next = part(self.numbers, self.first, &dims)?;
        self.first += shape.iter().product::<usize>();
        Ok(next)
    }
}

/// Requests of a session that decode together, rounded up.
fn rounded_rows(num_rows: usize) -> usize {
    match num_rows {
        0..=4 => num_rows.next_power_of_two(),
        _ => num_rows.next_multiple_of(8),
    }
}

/// A list of numbers as an array.
pub(crate) fn array(values: &[i32]) -> Result<Array, KernelError> {
    upload(values, &[to_i32(values.len())])
}

/// The numbers of a forward, growing row by row.
#[derive(Debug, Default)]
struct Layout {
    /// Where each token lies in its session's table.
    token_slots: Vec<i32>,
    positions: Vec<i32>,
    query_start_loc: Vec<i32>,
    seq_lens: Vec<i32>,
    /// By session: tokens that are the last ones of requests that sample.
    sampled_tokens: Vec<Vec<i32>>,
    /// By session: tokens.
    chunk_tokens: Vec<usize>,
    /// Blocks of each row.
    num_blocks: Vec<usize>,
    groups: Vec<GroupLayout>,
}

/// The numbers of one KV-cache group.
#[derive(Clone, Debug, Default)]
struct GroupLayout {
    slot_mapping: Vec<i32>,
    /// Of all rows, one after the other.
    blocks: Vec<i32>,
}

impl Layout {
    fn add_chunk(&mut self, chunk: &BatchedChunk<'_>, block_size: u32) {
        let tables = &chunk.step.block_tables;
        self.groups.resize(tables.len(), GroupLayout::default());
        for (group, blocks) in self.groups.iter_mut().zip(tables) {
            group.add_chunk(chunk, blocks, block_size);
        }
        let first_token = self.positions.len();
        let mut sampled_tokens = Vec::new();
        for part in chunk.parts {
            let row = &chunk.step.rows[part.row];
            self.query_start_loc.push(to_i32(self.positions.len()));
            for position in part.positions.clone() {
                self.positions.push(position.cast_signed());
                self.token_slots
                    .push(chunk.token_table.slot(row.handle, position));
            }
            self.seq_lens.push(part.positions.end.cast_signed());
            self.num_blocks.push(part.num_blocks(block_size));
            if part.samples(row) {
                sampled_tokens.push(to_i32(self.positions.len() - 1));
            }
        }
        self.chunk_tokens.push(self.positions.len() - first_token);
        self.sampled_tokens.push(sampled_tokens);
    }

    /// Adds requests to the last chunk, which has requests of one token: each reads the first slot
    /// of the null block and writes nothing.
    fn round_chunk(&mut self) {
        let num_tokens = self.chunk_tokens.last_mut().expect("a chunk was added");
        let slot = self.token_slots[self.token_slots.len() - *num_tokens];
        for _ in *num_tokens..rounded_rows(*num_tokens) {
            self.query_start_loc.push(to_i32(self.positions.len()));
            self.token_slots.push(slot);
            self.positions.push(0);
            self.seq_lens.push(1);
            self.num_blocks.push(0);
            for group in &mut self.groups {
                group.slot_mapping.push(PAD_SLOT);
            }
        }
        *num_tokens = rounded_rows(*num_tokens);
    }

    fn finish(mut self, sizes: Sizes) -> InputBatch {
        self.query_start_loc.push(to_i32(self.positions.len()));
        let longest = self.num_blocks.iter().copied().max().unwrap_or(0);
        let max_blocks = match sizes {
            Sizes::Exact => longest,
            Sizes::Blocks | Sizes::BlocksAndRows => longest.next_power_of_two().max(16),
        };
        let mut numbers = self.token_slots;
        numbers.extend(&self.positions);
        numbers.extend(&self.query_start_loc);
        numbers.extend(&self.seq_lens);
        for group in &self.groups {
            numbers.extend(&group.slot_mapping);
            group.add_block_table(&self.num_blocks, max_blocks, &mut numbers);
        }
        InputBatch {
            numbers,
            sampled_tokens: self.sampled_tokens,
            num_tokens: u32::try_from(self.positions.len()).expect("a forward's size is limited"),
            chunk_tokens: self.chunk_tokens,
            max_blocks,
            num_reqs: self.seq_lens.len(),
            num_groups: self.groups.len(),
        }
    }
}

impl GroupLayout {
    /// Adds what runs of a step, the blocks of whose rows in this group are `blocks`.
    fn add_chunk(&mut self, chunk: &BatchedChunk<'_>, blocks: &[i32], block_size: u32) {
        let rows = &chunk.step.rows;
        let (mut next_row, mut first_block) = (0, 0);
        for part in chunk.parts {
            let passed = &rows[next_row..part.row];
            first_block += passed
                .iter()
                .map(|row| row.num_blocks as usize)
                .sum::<usize>();
            next_row = part.row;
            let row_blocks = &blocks[first_block..][..part.num_blocks(block_size)];
            for position in part.positions.clone() {
                let block = row_blocks[(position / block_size) as usize];
                self.slot_mapping
                    .push(block * block_size.cast_signed() + (position % block_size).cast_signed());
            }
            self.blocks.extend_from_slice(row_blocks);
        }
    }

    /// `[num_reqs, max_blocks]`, for rows of `num_blocks` blocks.
    fn add_block_table(&self, num_blocks: &[usize], max_blocks: usize, numbers: &mut Vec<i32>) {
        let mut rest = self.blocks.as_slice();
        for num_blocks in num_blocks {
            let (row, others) = rest.split_at(*num_blocks);
            rest = others;
            numbers.extend_from_slice(row);
            numbers.resize(numbers.len() + max_blocks - num_blocks, 0);
        }
    }
}

fn to_i32(value: usize) -> i32 {
    i32::try_from(value).expect("a forward's size is limited")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use metal_rpc_protocol::SamplingParams;

    use super::*;
    use crate::session::ValidRow;

    /// A step of rows that decode at these positions, in blocks of two tokens that follow each other.
    fn decodes(positions: &[u32]) -> (ValidStep, Vec<RowPart>) {
        let row = |(handle, &position): (u32, &u32)| ValidRow {
            handle,
            num_computed_tokens: position,
            num_scheduled_tokens: 1,
            num_tokens: position + 1,
            num_prompt_tokens: 1,
            num_blocks: position / 2 + 1,
            sampling_params: Arc::new(SamplingParams::default()),
            seed: 0,
        };
        let rows: Vec<ValidRow> = (0..).zip(positions).map(row).collect();
        let num_blocks: u32 = rows.iter().map(|row| row.num_blocks).sum();
        let part = |(row, &position): (usize, &u32)| RowPart {
            row,
            positions: position..position + 1,
        };
        let parts = positions.iter().enumerate().map(part).collect();
        let step = ValidStep {
            seq: 1,
            received: Instant::now(),
            sample_follows: false,
            num_tokens: 3,
            rows,
            new_tokens: Vec::new(),
            block_tables: vec![(1..=num_blocks.cast_signed()).collect()],
            grammar: None,
        };
        (step, parts)
    }

    #[test]
    fn what_is_rounded_up_reads_the_null_block_and_writes_nothing() {
        let table = TokenTable::reserve(4, 10).expect("reserves");
        let (step, parts) = decodes(&[3, 0, 4]);
        let chunk = BatchedChunk {
            step: &step,
            parts: &parts,
            token_table: &table,
        };
        let exact = InputBatch::build(&[chunk], 2, Sizes::Exact);
        let slots = [3, 10, 24];
        let blocks = [[1, 2, 0], [3, 0, 0], [4, 5, 6]];
        let expected = [
            &slots[..],
            &[3, 0, 4],
            &[0, 1, 2, 3],
            &[4, 1, 5],
            &[5, 6, 12],
            blocks.as_flattened(),
        ];
        assert_eq!(exact.numbers, expected.concat());

        let chunk = BatchedChunk {
            step: &step,
            parts: &parts,
            token_table: &table,
        };
        let rounded = InputBatch::build(&[chunk], 2, Sizes::BlocksAndRows);
        assert_eq!((rounded.num_tokens, rounded.max_blocks), (4, 16));
        let (numbers, tables) = rounded.numbers.split_at(21);
        let expected = [
            &[3, 10, 24, 3][..],
            &[3, 0, 4, 0],
            &[0, 1, 2, 3, 4],
            &[4, 1, 5, 1],
            &[5, 6, 12, PAD_SLOT],
        ];
        assert_eq!(numbers, expected.concat());
        let mut rows = [[0; 16]; 4];
        for (row, blocks) in rows.iter_mut().zip(blocks) {
            row[..3].copy_from_slice(&blocks);
        }
        assert_eq!(tables, rows.as_flattened());
        assert_eq!(rounded.sampled_tokens, exact.sampled_tokens);
    }

    #[test]
    fn few_sizes_come_often() {
        for (num_rows, rounded) in [(1, 1), (3, 4), (5, 8), (8, 8), (9, 16), (64, 64)] {
            assert_eq!(rounded_rows(num_rows), rounded);
        }
    }
}
