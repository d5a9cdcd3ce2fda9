//! Many rows times a block of weights, in tiles of four rows by three outputs.
//!
//! # Invariants
//! The partial sums of a tile are kept as eight lanes between two pieces of the input axis, so the
//! order of a sum is that of `dot.rs`.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use std::cell::RefCell;

use super::{Span, Weight};
use crate::{
    dot::{self, Rows},
    pool::Shared,
    simd::{LANES, Lanes, Operation, vectorized},
};

/// Outputs of one block, a multiple of the tile's three.
pub(super) const BLOCK_OUTPUTS: usize = 48;

/// Rows of one block, a multiple of the tile's four.
pub(super) const BLOCK_ROWS: usize = 64;

/// Elements of the input axis of one block: 48 * 512 * 4 B = 96 KiB of weights.
const BLOCK_INPUTS: usize = 512;

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

/// Some outputs of some rows. Knows the weights only as the panel's f32.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// `[.., inputs]`
    pub(super) x: &'a [f32],
    /// `[.., outputs]`
    pub(super) y: &'a Shared<f32>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) block_rows: Span,
    pub(super) block_outputs: Span,
}

impl Block<'_> {
    pub(super) fn compute<W: Weight>(self, weight: W) {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut start = 0;
            // At least once, so that a layer without inputs gives zeros.
            loop {
                let len = BLOCK_INPUTS.min(self.inputs - start);
                let piece = Piece {
                    inputs: Span { first: start, len },
                    is_first: start == 0,
                    is_last: start + len == self.inputs,
                };
                vectorized(Convert {
                    weight,
                    outputs: self.block_outputs,
                    inputs: piece.inputs,
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
        });
    }
}

/// Part of the input axis.
#[derive(Clone, Copy)]
struct Piece {
    inputs: Span,
    is_first: bool,
    is_last: bool,
}

/// Fills a panel with one piece of the weights of a block.
struct Convert<'a, W> {
    weight: W,
    outputs: Span,
    inputs: Span,
    panel: &'a mut [f32],
}

impl<W: Weight> Operation for Convert<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        assert!(self.outputs.len <= BLOCK_OUTPUTS);
        assert!(self.inputs.len <= BLOCK_INPUTS);
        for index in 0..self.outputs.len {
            let output = self.outputs.first + index;
            let to = self.panel[index * BLOCK_INPUTS..][..BLOCK_INPUTS].as_mut_ptr();
            // SAFETY: an output of this block, and a line of the panel has room for its piece.
            unsafe { self.weight.convert::<L>(output, self.inputs, to, LANES) };
        }
    }
}

/// Multiplies the rows of a block with the panel.
struct Multiply<'a> {
    block: Block<'a>,
    piece: Piece,
    scratch: &'a mut Scratch,
}

impl Operation for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let mut output = 0;
        while output + 3 <= self.block.block_outputs.len {
            self.rows::<L, 3>(output);
            output += 3;
        }
        while output < self.block.block_outputs.len {
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
        while row < self.block.block_rows.len {
            row += match self.block.block_rows.len - row {
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
        let first_row = block.block_rows.first + row;
        let x = Rows {
            ptr: block.x[first_row * block.inputs + piece.inputs.first..].as_ptr(),
            stride: block.inputs,
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
            dot::tile::<L, f32, R, O, false>(x, w, piece.inputs.len, &mut sums);
            let first_output = block.block_outputs.first + output;
            let y = block.y.column(first_row * block.outputs + first_output);
            for r in 0..R {
                for o in 0..O {
                    if piece.is_last {
                        *y.add(r * block.outputs + o) = sums[r][o].sum();
                    } else {
                        sums[r][o].store(kept.add((r * O + o) * LANES));
                    }
                }
            }
        }
        R
    }
}
