//! The linear layer on the CPU: one row at the speed of memory, many at the speed of arithmetic.
//!
//! Few rows: weights stream through registers once, in their own dtype. Many rows: a block of
//! weights is converted to f32 once and stays in the second-level cache while a block of rows
//! passes over it, four rows by three outputs at a time.
//!
//! # Invariants
//! Both ways add in the same order (see `dot.rs`): the partial sums of the second are kept as
//! eight lanes between two pieces of the input axis.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use std::{cell::RefCell, ffi::CStr};

use crate::{
    dot::{self, Rows},
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
    simd::{LANES, Lanes, Operation, vectorized},
};

/// From this many rows on, converting the weights first pays.
const MANY_ROWS: usize = 16;

/// Weights that one task streams when there are few rows.
const STREAM_SIZE_BYTES: usize = 64 * 1024;

/// Outputs of one block, a multiple of the tile's three.
const BLOCK_OUTPUTS: usize = 48;

/// Rows of one block, a multiple of the tile's four.
const BLOCK_ROWS: usize = 64;

/// Elements of the input axis of one block: 48 * 512 * 4 B = 96 KiB of weights.
const BLOCK_INPUTS: usize = 512;

/// `x` `[rows, inputs]`, `weight` `[outputs, inputs]`, optional `bias` `[outputs]` -> `y`.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) rows: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) weight: FloatType,
    pub(super) bias: Option<FloatType>,
}

impl HostKernel for Linear {
    const NAME: &'static CStr = c"linear";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let x = inputs[0].as_slice::<f32>();
        let y = outputs[0].as_mut_slice::<f32>();
        assert!(x.len() == self.rows * self.inputs);
        assert!(y.len() == self.rows * self.outputs);
        with_float_type!(self.weight, W => {
            let weight = inputs[1].as_slice::<W>();
            assert!(weight.len() == self.outputs * self.inputs);
            if self.rows < MANY_ROWS {
                self.stream(x, weight, y);
            } else {
                self.blocks(x, weight, y);
            }
        });
        if let Some(bias) = self.bias {
            with_float_type!(bias, B => self.add_bias(inputs[2].as_slice::<B>(), y));
        }
    }
}

impl Linear {
    fn work(&self) -> usize {
        self.rows * self.inputs * self.outputs
    }

    fn add_bias<B: Float>(&self, bias: &[B], y: &mut [f32]) {
        assert!(bias.len() == self.outputs);
        for row in y.chunks_exact_mut(self.outputs.max(1)) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias.to_f32();
            }
        }
    }

    /// Few rows: each task takes some outputs.
    fn stream<W: Float>(&self, x: &[f32], weight: &[W], y: &mut [f32]) {
        let row_size_bytes = (self.inputs * size_of::<W>()).max(1);
        let outputs_per_task = (STREAM_SIZE_BYTES / row_size_bytes / 24).max(1) * 24;
        let num_tasks = self.outputs.div_ceil(outputs_per_task);
        let y = Shared::new(y);
        pool::for_each(num_tasks, self.work(), |task| {
            let first = task * outputs_per_task;
            vectorized(Stream {
                layer: self,
                x,
                weight,
                y: &y,
                first,
                count: outputs_per_task.min(self.outputs - first),
            });
        });
    }

    /// Many rows: each task takes some outputs of some rows.
    fn blocks<W: Float>(&self, x: &[f32], weight: &[W], y: &mut [f32]) {
        let num_row_blocks = self.rows.div_ceil(BLOCK_ROWS);
        let num_output_blocks = self.outputs.div_ceil(BLOCK_OUTPUTS);
        let y = Shared::new(y);
        pool::for_each(num_row_blocks * num_output_blocks, self.work(), |task| {
            // Neighbours share their weights.
            let first_output = task / num_row_blocks * BLOCK_OUTPUTS;
            let first_row = task % num_row_blocks * BLOCK_ROWS;
            let block = Block {
                layer: self,
                x,
                y: &y,
                first_row,
                rows: BLOCK_ROWS.min(self.rows - first_row),
                first_output,
                outputs: BLOCK_OUTPUTS.min(self.outputs - first_output),
            };
            SCRATCH.with_borrow_mut(|scratch| block.compute(weight, scratch));
        });
    }
}

struct Stream<'a, W> {
    layer: &'a Linear,
    x: &'a [f32],
    weight: &'a [W],
    y: &'a Shared<f32>,
    first: usize,
    count: usize,
}

impl<W: Float> Operation for Stream<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let inputs = self.layer.inputs;
        let x = Rows {
            ptr: self.x.as_ptr(),
            stride: inputs,
            count: self.layer.rows,
        };
        let w = Rows {
            ptr: self.weight[self.first * inputs..].as_ptr(),
            stride: inputs,
            count: self.count,
        };
        // SAFETY: the slices' lengths were checked in `Linear::run`; tasks write disjoint columns.
        unsafe {
            let y = self.y.column(self.first);
            dot::products::<L, W>(x, w, inputs, y, self.layer.outputs);
        }
    }
}

/// What a thread keeps between blocks.
struct Scratch {
    /// `[BLOCK_OUTPUTS, BLOCK_INPUTS]` weights as f32.
    panel: Vec<f32>,
    /// `[BLOCK_ROWS / 4, BLOCK_OUTPUTS / 3, 12, LANES]` unfinished sums.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        panel: vec![0.0; BLOCK_OUTPUTS * BLOCK_INPUTS],
        sums: vec![0.0; BLOCK_ROWS * BLOCK_OUTPUTS * LANES],
    });
}

/// Fills a panel with one piece of the weights of a block.
struct Convert<'a, W> {
    /// From the block's first output on, `[outputs, stride]`.
    weight: &'a [W],
    stride: usize,
    outputs: usize,
    piece: Piece,
    panel: &'a mut [f32],
}

impl<W: Float> Operation for Convert<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Piece { start, len, .. } = self.piece;
        let full = len / LANES * LANES;
        for output in 0..self.outputs {
            let from = &self.weight[output * self.stride + start..][..len];
            let to = &mut self.panel[output * BLOCK_INPUTS..][..len];
            let mut i = 0;
            while i < full {
                // SAFETY: `i + 8 <= len`, the length of both.
                unsafe { W::load::<L>(from.as_ptr().add(i)).store(to.as_mut_ptr().add(i)) };
                i += LANES;
            }
            for i in full..len {
                to[i] = from[i].to_f32();
            }
        }
    }
}

/// Part of the input axis.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    len: usize,
    is_first: bool,
    is_last: bool,
}

/// Some outputs of some rows. Knows the weights only as the panel's f32.
struct Block<'a> {
    layer: &'a Linear,
    x: &'a [f32],
    y: &'a Shared<f32>,
    first_row: usize,
    rows: usize,
    first_output: usize,
    outputs: usize,
}

impl Block<'_> {
    fn compute<W: Float>(&self, weight: &[W], scratch: &mut Scratch) {
        let inputs = self.layer.inputs;
        let mut start = 0;
        // At least once, so that a layer without inputs gives zeros.
        loop {
            let len = BLOCK_INPUTS.min(inputs - start);
            let piece = Piece {
                start,
                len,
                is_first: start == 0,
                is_last: start + len == inputs,
            };
            vectorized(Convert {
                weight: &weight[self.first_output * inputs..],
                stride: inputs,
                outputs: self.outputs,
                piece,
                panel: &mut scratch.panel,
            });
            vectorized(Multiply {
                block: self,
                piece,
                scratch,
            });
            if piece.is_last {
                return;
            }
            start += len;
        }
    }
}

/// Multiplies the rows of a block with the panel.
struct Multiply<'a> {
    block: &'a Block<'a>,
    piece: Piece,
    scratch: &'a mut Scratch,
}

impl Operation for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let mut output = 0;
        while output + 3 <= self.block.outputs {
            self.rows::<L, 3>(output);
            output += 3;
        }
        while output < self.block.outputs {
            self.rows::<L, 1>(output);
            output += 1;
        }
    }
}

impl Multiply<'_> {
    /// All rows of the block for `O` outputs from `output` on.
    #[inline(always)]
    fn rows<L: Lanes, const O: usize>(&mut self, output: usize) {
        let mut row = 0;
        while row < self.block.rows {
            row += match self.block.rows - row {
                1 => self.tile::<L, 1, O>(row, output),
                2 => self.tile::<L, 2, O>(row, output),
                3 => self.tile::<L, 3, O>(row, output),
                _ => self.tile::<L, 4, O>(row, output),
            };
        }
    }

    /// `R` rows by `O` outputs. Returns `R`.
    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const O: usize>(
        &mut self,
        row: usize,
        output: usize,
    ) -> usize {
        let (block, piece) = (self.block, self.piece);
        let (inputs, first_row) = (block.layer.inputs, block.first_row + row);
        let x = Rows {
            ptr: block.x[first_row * inputs + piece.start..].as_ptr(),
            stride: inputs,
            count: R,
        };
        let w = Rows {
            ptr: self.scratch.panel[output * BLOCK_INPUTS..].as_ptr(),
            stride: BLOCK_INPUTS,
            count: O,
        };
        let kept = self.scratch.sums[(output * BLOCK_ROWS + row * O) * LANES..][..R * O * LANES]
            .as_mut_ptr();
        let mut sums = [[L::splat(0.0); O]; R];
        // SAFETY: rows and outputs are of this block; `kept` has room for the tile; tasks write
        // disjoint parts of `y`.
        unsafe {
            if !piece.is_first {
                for r in 0..R {
                    for o in 0..O {
                        sums[r][o] = L::load(kept.add((r * O + o) * LANES));
                    }
                }
            }
            dot::tile::<L, f32, R, O, false>(x, w, piece.len, &mut sums);
            let y = block.y.column(block.first_output + output);
            for r in 0..R {
                for o in 0..O {
                    if piece.is_last {
                        *y.add((first_row + r) * block.layer.outputs + o) = sums[r][o].sum();
                    } else {
                        sums[r][o].store(kept.add((r * O + o) * LANES));
                    }
                }
            }
        }
        R
    }
}
