//! Rows times the transpose of weights: what every linear layer computes, whatever the format of its
//! weights, for one matrix or for many (experts).
//!
//! Few rows: weights stream through registers once, in their own format. Many rows: rows and weights
//! are packed and multiplied in tiles (`block`, `tile`, and a file for each kind of CPU). Where the CPU
//! has a matrix unit (`amx`), it takes all rows with weights of bf16 (`brain`), and those with weights
//! of four and eight bits as integers, but for one or two rows (`integer`).
//!
//! # Invariants
//! All ways that a format's rows can go on one CPU add in the same order (`dot.rs`; `amx.rs`) or exactly
//! (`integer.rs`), so a row's bits do not depend on the rows beside it, nor on how they are grouped.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bias;
mod block;
#[cfg(target_arch = "x86_64")]
mod brain;
mod dense;
mod eight;
mod experts;
#[cfg(target_arch = "x86_64")]
mod integer;
#[cfg(target_arch = "x86_64")]
mod panels;
mod stream;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod transposed;
mod weight;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::{
    avx512::{Avx512, sixteen_sums},
    integer::{Codes, Coding, SixteenGroups},
    panels::PAIR_OUTPUTS,
};
pub(crate) use self::{bias::add_bias, dense::Dense, experts::ExpertRows, weight::Weight};

use std::cell::RefCell;

use self::{
    block::{Block, Pack, PackRows, Packed, pack_len, reads_rows},
    eight::Eight,
    tile::Tiles,
};
use crate::{
    dot::Rows,
    pool::{self, Shared},
    scratch::grow,
    simd::vectorized,
};

/// From this many rows on, converting the weights first pays.
const MANY_ROWS: usize = 16;

/// Where weights need not be converted, tiles are as good from this many rows on.
const FEW_ROWS: usize = 2;

/// Weights of one block, as f32: what stays in the second-level cache with the rows beside it.
const BLOCK_SIZE_BYTES: usize = 256 * 1024;

/// Outputs of one block are a multiple of this, of every tile's, and at most so many of them.
const BLOCK_OUTPUTS: usize = 12;
const MAX_BLOCK_OUTPUTS: usize = 96;

/// Rows of one block, at least and where there are as many: each block converts its weights anew.
const BLOCK_ROWS: usize = 64;

/// Blocks that a thread should have, so that none waits long for the last.
const BLOCKS_PER_THREAD: usize = 4;

/// Weights that one task streams when there are few rows.
const STREAM_SIZE_BYTES: usize = 64 * 1024;

/// Outputs that one task streams are a multiple of this: of every tile's.
const STREAM_OUTPUTS: usize = 24;

/// `len` things from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) len: usize,
}

/// Rows that meet the same weights.
#[derive(Clone, Copy)]
pub(crate) struct Group<W> {
    pub(crate) weight: W,
    pub(crate) rows: Span,
}

/// What to multiply: `x` `[rows, inputs]` by groups of rows -> `[rows, outputs]`.
pub(crate) struct Product<'a, W> {
    pub(crate) x: &'a [f32],
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) groups: &'a [Group<W>],
}

thread_local! {
    static PLAN: RefCell<Plan> = RefCell::default();
}

/// What is laid out before the tasks begin.
#[derive(Default)]
struct Plan {
    parts: Vec<Part>,
    packs: Vec<Pack>,
    /// `[packs, steps, ROWS, LANES]`
    packed: Vec<f32>,
}

/// The tasks of one group.
#[derive(Clone, Copy)]
struct Part {
    /// One past its last task, counted over all groups.
    end_task: usize,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    /// Each task streams some outputs.
    Stream { outputs: usize },
    /// Each task multiplies some outputs with some packs.
    Tiles {
        outputs: usize,
        first_pack: usize,
        num_packs: usize,
        packs: usize,
    },
}

impl<W: Weight> Product<'_, W> {
    /// Writes the results of all groups' rows; other rows of `y` are left alone.
    ///
    /// # Panics
    /// If a group has rows that `x` or `y` has not.
    pub(crate) fn compute(&self, y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if W::IS_BRAIN && self.inputs > 0 && amx::is_available() {
            // SAFETY: just checked.
            return unsafe { brain::compute(self, y) };
        }
        #[cfg(target_arch = "x86_64")]
        if W::IS_INTEGER && self.inputs > 0 && amx::is_available() {
            // SAFETY: just checked.
            return unsafe { integer::compute(self, y) };
        }
        #[cfg(target_arch = "x86_64")]
        if Avx512::is_available() {
            return match W::IN_SIXTEEN_LANES {
                true => self.compute_with::<avx512::Sixteen>(y),
                false => self.compute_with::<Avx512>(y),
            };
        }
        self.compute_with::<Eight>(y);
    }

    fn compute_with<K: Tiles>(&self, y: &mut [f32]) {
        PLAN.with_borrow_mut(|plan| {
            plan.parts.clear();
            plan.packs.clear();
            let mut num_rows = 0;
            for Group { weight, rows } in self.groups {
                assert!((rows.first + rows.len) * self.inputs <= self.x.len());
                assert!((rows.first + rows.len) * self.outputs <= y.len());
                num_rows += rows.len;
                let end = plan.parts.last().map_or(0, |part| part.end_task);
                let (num_tasks, way) = self.way::<K>(weight, *rows, &mut plan.packs);
                plan.parts.push(Part {
                    end_task: end + num_tasks,
                    way,
                });
            }
            self.pack::<K>(plan);
            let y = Shared::new(y);
            let Plan {
                parts,
                packs,
                packed,
            } = &*plan;
            let num_tasks = parts.last().map_or(0, |part| part.end_task);
            pool::for_each(num_tasks, self.work(num_rows), |task| {
                let index = parts.partition_point(|part| part.end_task <= task);
                let first_task = parts[..index].last().map_or(0, |part| part.end_task);
                let (group, task) = (self.groups[index], task - first_task);
                match parts[index].way {
                    Way::Stream { outputs } => {
                        self.stream::<K>(group, task * outputs, outputs, &y);
                    }
                    way @ Way::Tiles { .. } => {
                        let packed = Packed { packs, x: packed };
                        self.block::<K>(group.weight, task, way, packed, &y);
                    }
                }
            });
        });
    }

    /// Multiply-adds of so many rows.
    fn work(&self, num_rows: usize) -> usize {
        num_rows * self.inputs * self.outputs
    }

    /// How the rows of a group meet their weights, in how many tasks.
    fn way<K: Tiles>(&self, weight: &W, rows: Span, packs: &mut Vec<Pack>) -> (usize, Way) {
        let in_rows = reads_rows::<K, W>(self.inputs);
        if rows.len < if in_rows { FEW_ROWS } else { MANY_ROWS } {
            let outputs = outputs_per_task(weight);
            let num_tasks = if rows.len == 0 {
                0
            } else {
                self.outputs.div_ceil(outputs)
            };
            return (num_tasks, Way::Stream { outputs });
        }
        let first_pack = packs.len();
        packs.extend((0..rows.len).step_by(K::ROWS).map(|row| Pack {
            first_row: rows.first + row,
            rows: K::ROWS.min(rows.len - row),
        }));
        let num_packs = packs.len() - first_pack;
        let output_size_bytes = self.inputs.max(1) * size_of::<f32>();
        let outputs = (BLOCK_SIZE_BYTES / output_size_bytes / BLOCK_OUTPUTS).max(1) * BLOCK_OUTPUTS;
        let outputs = outputs.min(MAX_BLOCK_OUTPUTS);
        let num_output_blocks = self.outputs.div_ceil(outputs);
        let wanted = (pool::num_threads() * BLOCKS_PER_THREAD).div_ceil(num_output_blocks.max(1));
        let packs = num_packs.div_ceil(wanted).max(BLOCK_ROWS.div_ceil(K::ROWS));
        let way = Way::Tiles {
            outputs,
            first_pack,
            num_packs,
            packs,
        };
        (num_output_blocks * num_packs.div_ceil(packs), way)
    }

    /// Packs the rows that are multiplied in tiles.
    fn pack<K: Tiles>(&self, plan: &mut Plan) {
        let len = pack_len::<K>(self.inputs);
        let Plan { packs, packed, .. } = plan;
        grow(packed, packs.len() * len);
        let packed = Shared::new(packed);
        pool::for_each(packs.len(), packs.len() * len, |index| {
            vectorized(PackRows {
                x: self.x,
                inputs: self.inputs,
                pack: packs[index],
                tile: (K::ROWS, K::LANES),
                // SAFETY: tasks write disjoint packs.
                to: unsafe { packed.part(index * len, len) },
            });
        });
    }

    /// Few rows: some outputs.
    fn stream<K: Tiles>(&self, group: Group<W>, first: usize, outputs: usize, y: &Shared<f32>) {
        let rows = group.rows;
        let x = Rows {
            ptr: self.x[rows.first * self.inputs..].as_ptr(),
            stride: self.inputs,
            count: rows.len,
        };
        let span = Span {
            first,
            len: outputs.min(self.outputs - first),
        };
        // SAFETY: `compute_with` has checked that the rows exist; tasks write disjoint columns.
        unsafe {
            let y = y.column(rows.first * self.outputs + first);
            K::stream(group.weight, x, span, y, self.outputs);
        }
    }

    /// Many rows: task `task` of a group.
    fn block<K: Tiles>(
        &self,
        weight: W,
        task: usize,
        way: Way,
        packed: Packed<'_>,
        y: &Shared<f32>,
    ) {
        let Way::Tiles {
            outputs,
            first_pack,
            num_packs,
            packs,
        } = way
        else {
            unreachable!("the way of a block")
        };
        // Neighbours share their weights.
        let num_pack_blocks = num_packs.div_ceil(packs);
        let first_output = task / num_pack_blocks * outputs;
        let first = first_pack + task % num_pack_blocks * packs;
        let end = (first + packs).min(first_pack + num_packs);
        let len = pack_len::<K>(self.inputs);
        let block = Block {
            packed: Packed {
                packs: &packed.packs[first..end],
                x: &packed.x[first * len..end * len],
            },
            inputs: self.inputs,
            num_outputs: self.outputs,
            outputs: Span {
                first: first_output,
                len: outputs.min(self.outputs - first_output),
            },
            y,
        };
        block.compute::<K, W>(weight);
    }
}

fn outputs_per_task<W: Weight>(weight: &W) -> usize {
    let outputs = STREAM_SIZE_BYTES / weight.output_size_bytes().max(1);
    (outputs / STREAM_OUTPUTS).max(1) * STREAM_OUTPUTS
}
