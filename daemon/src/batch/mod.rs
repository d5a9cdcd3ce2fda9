//! The steps of one or more sessions, laid out flat for one forward.
//!
//! # Layout
//! - [`InputBatch`]: the arrays of one forward
//! - [`admission`]: which steps run together, and when
//! - [`turns`]: which model is next; [`shares`]: how much of each step runs

pub mod admission;
pub mod shares;
pub mod turns;

use metal_rpc_kernels::{AttentionMetadata, KernelError, upload};
use mlx_rs::Array;
use mlx_rs::ops::concatenate;

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

/// The arrays of one forward, requests of one session after those of another.
#[derive(Debug)]
pub struct InputBatch {
    /// What the model reads.
    pub input: ForwardInput,
    /// By session: the last token of each request that samples, as an index into the forward's
    /// tokens.
    pub sampled_tokens: Vec<Vec<i32>>,
    /// Tokens in the forward.
    pub num_tokens: u32,
}

impl InputBatch {
    /// Lays out `chunks`.
    ///
    /// # Errors
    /// If MLX refuses an array.
    pub fn build(chunks: &[BatchedChunk<'_>], block_size: u32) -> Result<Self, KernelError> {
        let mut layout = Layout::default();
        let mut token_ids = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let token_table = chunk.token_table;
            let first_token = layout.positions.len();
            layout.add_chunk(chunk, block_size);
            let slots: Vec<i32> = layout
                .token_rows
                .drain(..)
                .zip(&layout.positions[first_token..])
                .map(|(handle, position)| token_table.slot(handle, position.cast_unsigned()))
                .collect();
            token_ids.push(token_table.gather(&array(&slots)?)?);
        }
        let token_ids = match <[Array; 1]>::try_from(token_ids) {
            Ok([token_ids]) => token_ids,
            Err(token_ids) => concatenate(&token_ids, 0)?,
        };
        layout.finish(token_ids)
    }
}

/// A list of numbers as an array.
pub(crate) fn array(values: &[i32]) -> Result<Array, KernelError> {
    upload(values, &[to_i32(values.len())])
}

/// The arrays of a forward, growing row by row.
#[derive(Debug, Default)]
struct Layout {
    /// Handle of each token of the chunk that is being added.
    token_rows: Vec<u32>,
    positions: Vec<i32>,
    query_start_loc: Vec<i32>,
    seq_lens: Vec<i32>,
    /// By session: tokens that are the last ones of requests that sample.
    sampled_tokens: Vec<Vec<i32>>,
    /// Blocks of each row.
    num_blocks: Vec<usize>,
    groups: Vec<GroupLayout>,
}

/// The arrays of one KV-cache group.
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
        let mut sampled_tokens = Vec::new();
        for part in chunk.parts {
            let row = &chunk.step.rows[part.row];
            self.query_start_loc.push(to_i32(self.positions.len()));
            for position in part.positions.clone() {
                self.positions.push(position.cast_signed());
                self.token_rows.push(row.handle);
            }
            self.seq_lens.push(part.positions.end.cast_signed());
            self.num_blocks.push(part.num_blocks(block_size));
            if part.samples(row) {
                sampled_tokens.push(to_i32(self.positions.len() - 1));
            }
        }
        self.sampled_tokens.push(sampled_tokens);
    }

    fn finish(mut self, token_ids: Array) -> Result<InputBatch, KernelError> {
        self.query_start_loc.push(to_i32(self.positions.len()));
        let query_start_loc = array(&self.query_start_loc)?;
        let seq_lens = array(&self.seq_lens)?;
        let group = |group: &GroupLayout| {
            Ok(GroupInput {
                slot_mapping: array(&group.slot_mapping)?,
                attention: AttentionMetadata {
                    block_table: group.block_table(&self.num_blocks)?,
                    query_start_loc: query_start_loc.clone(),
                    seq_lens: seq_lens.clone(),
                },
            })
        };
        let groups = self.groups.iter().map(group);
        let groups = groups.collect::<Result<_, KernelError>>()?;
        Ok(InputBatch {
            num_tokens: u32::try_from(self.positions.len()).expect("a forward's size is limited"),
            input: ForwardInput {
                token_ids,
                positions: array(&self.positions)?,
                groups,
            },
            sampled_tokens: self.sampled_tokens,
        })
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
    fn block_table(&self, num_blocks: &[usize]) -> Result<Array, KernelError> {
        let max_blocks = num_blocks.iter().copied().max().unwrap_or(0);
        let mut table = Vec::with_capacity(num_blocks.len() * max_blocks);
        let mut rest = self.blocks.as_slice();
        for num_blocks in num_blocks {
            let (row, others) = rest.split_at(*num_blocks);
            rest = others;
            table.extend_from_slice(row);
            table.resize(table.len() + max_blocks - num_blocks, 0);
        }
        upload(&table, &[to_i32(num_blocks.len()), to_i32(max_blocks)])
    }
}

fn to_i32(value: usize) -> i32 {
    i32::try_from(value).expect("a forward's size is limited")
}
