//! Rows times the transpose of weights: what every linear layer computes, whatever the format of its
//! weights, for one matrix or for many (experts).
//!
//! Few rows: weights stream through registers once, in their own format. Many rows: a block of
//! weights is converted to f32 once and stays in the second-level cache while a block of rows
//! passes over it (`block`).
//!
//! # Invariants
//! Both ways add in the same order (see `dot.rs`), so a row's bits do not depend on the rows beside
//! it, nor on how they are grouped.

mod bias;
mod block;
mod dense;

pub(crate) use self::{bias::add_bias, dense::Dense};

use self::block::{BLOCK_OUTPUTS, BLOCK_ROWS, Block};
use crate::{
    dot::Rows,
    pool::{self, Shared},
    simd::{Lanes, Operation, vectorized},
};

/// From this many rows on, converting the weights first pays.
const MANY_ROWS: usize = 16;

/// Weights that one task streams when there are few rows.
const STREAM_SIZE_BYTES: usize = 64 * 1024;

/// Outputs that one task streams are a multiple of this: of every tile's.
const STREAM_OUTPUTS: usize = 24;

/// A matrix of weights, `[outputs, inputs]`, in some format. A view: copies are free.
pub(crate) trait Weight: Copy + Send + Sync {
    /// Bytes of the weights of one output.
    fn output_size_bytes(&self) -> usize;

    /// `out[r * out_stride + o]` = row `r` of `x` times the weights of output `first + o`, for few
    /// rows and the `count` outputs from `first` on.
    ///
    /// # Safety
    /// Rows of `x` have as many elements as the weights have inputs; the outputs exist; `out` has
    /// room for the results.
    unsafe fn stream<L: Lanes>(self, x: Rows<f32>, outputs: Span, out: *mut f32, out_stride: usize);

    /// Writes a piece of the weights of one output as f32: the eight inputs of group `g` at
    /// `to + g * stride`, the last group filled up with zeros.
    ///
    /// # Safety
    /// Output and inputs exist, `inputs.first` is a multiple of 64, the stride is at least eight,
    /// and there is room for all groups.
    unsafe fn convert<L: Lanes>(self, output: usize, inputs: Span, to: *mut f32, stride: usize);
}

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

impl<W: Weight> Product<'_, W> {
    /// Writes the results of all groups' rows; other rows of `y` are left alone.
    ///
    /// # Panics
    /// If a group has rows that `x` or `y` has not.
    pub(crate) fn compute(&self, y: &mut [f32]) {
        // The last task of each group, counted over all groups.
        let mut ends = Vec::with_capacity(self.groups.len());
        let (mut num_tasks, mut num_rows) = (0, 0);
        for Group { weight, rows } in self.groups {
            assert!((rows.first + rows.len) * self.inputs <= self.x.len());
            assert!((rows.first + rows.len) * self.outputs <= y.len());
            num_tasks += self.num_tasks(weight, rows.len);
            num_rows += rows.len;
            ends.push(num_tasks);
        }
        let y = Shared::new(y);
        pool::for_each(num_tasks, num_rows * self.inputs * self.outputs, |task| {
            let index = ends.partition_point(|&end| end <= task);
            let group = self.groups[index];
            let task = task - ends[..index].last().unwrap_or(&0);
            if group.rows.len < MANY_ROWS {
                self.stream(group, task, &y);
            } else {
                self.block(group, task, &y);
            }
        });
    }

    fn num_tasks(&self, weight: &W, rows: usize) -> usize {
        if rows == 0 {
            0
        } else if rows < MANY_ROWS {
            self.outputs.div_ceil(outputs_per_task(weight))
        } else {
            rows.div_ceil(BLOCK_ROWS) * self.outputs.div_ceil(BLOCK_OUTPUTS)
        }
    }

    /// Few rows: each task takes some outputs.
    fn stream(&self, group: Group<W>, task: usize, y: &Shared<f32>) {
        let per_task = outputs_per_task(&group.weight);
        let first = task * per_task;
        vectorized(Stream {
            product: self,
            group,
            outputs: Span {
                first,
                len: per_task.min(self.outputs - first),
            },
            y,
        });
    }

    /// Many rows: each task takes some outputs of some rows.
    fn block(&self, group: Group<W>, task: usize, y: &Shared<f32>) {
        let Group { weight, rows } = group;
        // Neighbours share their weights.
        let num_row_blocks = rows.len.div_ceil(BLOCK_ROWS);
        let first_output = task / num_row_blocks * BLOCK_OUTPUTS;
        let first_row = task % num_row_blocks * BLOCK_ROWS;
        let block = Block {
            x: self.x,
            y,
            inputs: self.inputs,
            outputs: self.outputs,
            block_rows: Span {
                first: rows.first + first_row,
                len: BLOCK_ROWS.min(rows.len - first_row),
            },
            block_outputs: Span {
                first: first_output,
                len: BLOCK_OUTPUTS.min(self.outputs - first_output),
            },
        };
        block.compute(weight);
    }
}

fn outputs_per_task<W: Weight>(weight: &W) -> usize {
    let outputs = STREAM_SIZE_BYTES / weight.output_size_bytes().max(1);
    (outputs / STREAM_OUTPUTS).max(1) * STREAM_OUTPUTS
}

struct Stream<'a, W> {
    product: &'a Product<'a, W>,
    group: Group<W>,
    outputs: Span,
    y: &'a Shared<f32>,
}

impl<W: Weight> Operation for Stream<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Product {
            inputs, outputs, ..
        } = *self.product;
        let Span { first, len } = self.group.rows;
        let x = Rows {
            ptr: self.product.x[first * inputs..].as_ptr(),
            stride: inputs,
            count: len,
        };
        // SAFETY: `Product::compute` has checked that the rows exist; tasks write disjoint columns.
        unsafe {
            let y = self.y.column(first * outputs + self.outputs.first);
            self.group.weight.stream::<L>(x, self.outputs, y, outputs);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts how often each element of the weights is read.
    #[derive(Clone, Copy)]
    struct Counting<'a> {
        weight: Dense<'a, f32>,
        inputs: usize,
        reads: &'a [AtomicUsize],
    }

    impl Counting<'_> {
        fn count(&self, output: usize, inputs: Span) {
            for input in inputs.first..inputs.first + inputs.len {
                self.reads[output * self.inputs + input].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    impl Weight for Counting<'_> {
        fn output_size_bytes(&self) -> usize {
            self.weight.output_size_bytes()
        }

        #[inline(always)]
        unsafe fn stream<L: Lanes>(
            self,
            x: Rows<f32>,
            outputs: Span,
            out: *mut f32,
            stride: usize,
        ) {
            let (first, len) = (0, self.inputs);
            for output in outputs.first..outputs.first + outputs.len {
                self.count(output, Span { first, len });
            }
            // SAFETY: the caller's promise.
            unsafe { self.weight.stream::<L>(x, outputs, out, stride) };
        }

        #[inline(always)]
        unsafe fn convert<L: Lanes>(
            self,
            output: usize,
            inputs: Span,
            to: *mut f32,
            stride: usize,
        ) {
            self.count(output, inputs);
            // SAFETY: the caller's promise.
            unsafe { self.weight.convert::<L>(output, inputs, to, stride) };
        }
    }

    /// How often each element of a group's weights is read for so many rows.
    fn reads(rows: &[usize]) -> Vec<Vec<usize>> {
        let (inputs, outputs) = (600, 100);
        let weight = vec![1.0; outputs * inputs];
        let counts: Vec<Vec<AtomicUsize>> = rows
            .iter()
            .map(|_| weight.iter().map(|_| AtomicUsize::new(0)).collect())
            .collect();
        let mut first = 0;
        let mut groups = Vec::new();
        for (&len, reads) in rows.iter().zip(&counts) {
            let weight = Dense::new(&weight, outputs, inputs);
            groups.push(Group {
                weight: Counting {
                    weight,
                    inputs,
                    reads,
                },
                rows: Span { first, len },
            });
            first += len;
        }
        let x = vec![1.0; first * inputs];
        let mut y = vec![0.0; first * outputs];
        Product {
            x: &x,
            inputs,
            outputs,
            groups: &groups,
        }
        .compute(&mut y);
        assert!(y.iter().all(|&y| y == 600.0));
        counts
            .into_iter()
            .map(|counts| counts.into_iter().map(AtomicUsize::into_inner).collect())
            .collect()
    }

    #[test]
    fn weights_are_read_once_and_only_where_there_are_rows() {
        let rows = [1, 0, 15, BLOCK_ROWS, 0];
        for (rows, reads) in rows.iter().zip(reads(&rows)) {
            assert!(
                reads.iter().all(|&reads| reads == (*rows).min(1)),
                "{rows} rows"
            );
        }
        // Every further block of rows converts them again.
        assert!(reads(&[BLOCK_ROWS + 1])[0].iter().all(|&reads| reads == 2));
    }
}
