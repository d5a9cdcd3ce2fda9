//! Some rows times some outputs, tile by tile.
//!
//! Rows are packed once for the whole product, in the order in which tiles read them. Weights are
//! brought into a panel of f32 in the same order, which stays in the second-level cache while all
//! rows of the task pass over it; or they are read as they stand, where the CPU does that for free.

use std::cell::RefCell;

use super::{
    Span, Weight,
    tile::{Tile, Tiles},
};
use crate::{
    pool::Shared,
    scratch::grow,
    simd::{LANES, Lanes, Operation, load_partial, vectorized},
};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread keeps between blocks.
#[derive(Default)]
struct Scratch {
    /// `[outputs / OUTPUTS, steps, OUTPUTS, LANES]` weights as f32.
    panel: Vec<f32>,
    /// The unfinished sums of each tile of a pack.
    kept: Vec<f32>,
}

/// Rows of one group that are packed together: `ROWS` of a tile, or what is left of them.
#[derive(Clone, Copy)]
pub(super) struct Pack {
    pub(super) first_row: usize,
    pub(super) rows: usize,
}

/// Rows as tiles read them.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) packs: &'a [Pack],
    /// `[packs, steps, ROWS, LANES]`
    pub(super) x: &'a [f32],
}

/// Some outputs of some packs.
pub(super) struct Block<'a> {
    pub(super) packed: Packed<'a>,
    pub(super) inputs: usize,
    /// Of the whole product.
    pub(super) num_outputs: usize,
    pub(super) outputs: Span,
    /// `[rows, num_outputs]`
    pub(super) y: &'a Shared<f32>,
}

/// Steps of a row: vectors, the last one filled up.
pub(super) fn steps<K: Tiles>(inputs: usize) -> usize {
    inputs.div_ceil(K::LANES)
}

/// Floats of one pack.
pub(super) fn pack_len<K: Tiles>(inputs: usize) -> usize {
    steps::<K>(inputs) * K::ROWS * K::LANES
}

/// Whether tiles read these weights as they stand in memory.
pub(super) fn reads_rows<K: Tiles, W: Weight>(inputs: usize) -> bool {
    K::READS_ROWS && W::STANDS_IN_ROWS && inputs.is_multiple_of(LANES)
}

impl Block<'_> {
    pub(super) fn compute<K: Tiles, W: Weight>(&self, weight: W) {
        let steps = steps::<K>(self.inputs);
        let num_tiles = self.outputs.len.div_ceil(K::OUTPUTS);
        SCRATCH.with_borrow_mut(|Scratch { panel, kept }| {
            grow(kept, num_tiles * K::KEPT_LEN);
            let in_rows = reads_rows::<K, W>(self.inputs);
            if !in_rows {
                grow(panel, num_tiles * steps * K::OUTPUTS * K::LANES);
                vectorized(Fill {
                    weight,
                    outputs: self.outputs,
                    tile: (K::OUTPUTS, K::LANES),
                    inputs: self.inputs,
                    panel,
                });
            }
            for index in 0..self.packed.packs.len() {
                // At least one piece, so that a layer without inputs gives zeros.
                for first in (0..steps.max(1)).step_by(K::MAX_STEPS) {
                    for nth in 0..num_tiles {
                        let piece = Span {
                            first,
                            len: K::MAX_STEPS.min(steps - first),
                        };
                        let tile = self.tile::<K>(index, nth, piece, kept);
                        let first_output = self.outputs.first + nth * K::OUTPUTS;
                        let at = (nth * steps + first) * K::OUTPUTS * K::LANES;
                        // SAFETY: rows and outputs exist, `packed` and `panel` hold them, and
                        // tasks write disjoint parts of `y`.
                        unsafe {
                            if in_rows {
                                weight.multiply::<K>((first_output, first), &tile, index == 0);
                            } else {
                                K::panel(&tile, panel[at..].as_ptr());
                            }
                        }
                    }
                }
            }
        });
    }

    /// Tile `nth` of the pack `index`, one piece of it.
    fn tile<K: Tiles>(&self, index: usize, nth: usize, piece: Span, kept: &mut [f32]) -> Tile {
        let Pack { first_row, rows } = self.packed.packs[index];
        let first_output = nth * K::OUTPUTS;
        let start = first_row * self.num_outputs + self.outputs.first + first_output;
        Tile {
            x: self.packed.x[index * pack_len::<K>(self.inputs)..]
                [piece.first * K::ROWS * K::LANES..]
                .as_ptr(),
            rows,
            outputs: K::OUTPUTS.min(self.outputs.len - first_output),
            steps: piece.len,
            kept: kept[nth * K::KEPT_LEN..][..K::KEPT_LEN].as_mut_ptr(),
            is_first: piece.first == 0,
            is_last: piece.first + piece.len == steps::<K>(self.inputs),
            // SAFETY: a result of this block, which no other task writes.
            y: unsafe { self.y.column(start) },
            y_stride: self.num_outputs,
        }
    }
}

/// Fills a panel with the weights of a block.
struct Fill<'a, W> {
    weight: W,
    outputs: Span,
    /// Outputs and lanes of a tile.
    tile: (usize, usize),
    inputs: usize,
    panel: &'a mut [f32],
}

impl<W: Weight> Operation for Fill<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (tile_outputs, lanes) = self.tile;
        let step_len = tile_outputs * lanes;
        let tile_len = self.inputs.div_ceil(lanes) * step_len;
        // From one eight to the next: within a step of sixteen lanes, and to the next step.
        let on = step_len + LANES - lanes;
        let strides = [if lanes == LANES { on } else { LANES }, on];
        let inputs = Span {
            first: 0,
            len: self.inputs,
        };
        for index in 0..self.outputs.len {
            let (nth, within) = (index / tile_outputs, index % tile_outputs);
            let tile = &mut self.panel[nth * tile_len..][..tile_len];
            let to = tile.as_mut_ptr().wrapping_add(within * lanes);
            // SAFETY: the output exists, and the tile has room for it from `to` on.
            unsafe {
                self.weight
                    .convert::<L>(self.outputs.first + index, inputs, to, strides)
            };
        }
    }
}

/// Packs rows of `x` `[.., inputs]` into `to`, `[steps, rows, lanes]`.
pub(super) struct PackRows<'a> {
    pub(super) x: &'a [f32],
    pub(super) inputs: usize,
    pub(super) pack: Pack,
    /// Rows and lanes of a tile.
    pub(super) tile: (usize, usize),
    pub(super) to: &'a mut [f32],
}

impl Operation for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (rows, lanes) = self.tile;
        for row in 0..rows {
            let exists = row < self.pack.rows;
            let from = match exists {
                true => &self.x[(self.pack.first_row + row) * self.inputs..][..self.inputs],
                false => &[],
            };
            let steps = self.to.chunks_exact_mut(rows * lanes);
            let eights = steps.flat_map(|to| to[row * lanes..][..lanes].chunks_exact_mut(LANES));
            for (eight, to) in eights.enumerate() {
                let from = &from[from.len().min(eight * LANES)..];
                // SAFETY: a whole vector of the row, or its rest; there is room for eight.
                unsafe {
                    let value = if from.len() >= LANES {
                        L::load(from.as_ptr())
                    } else {
                        load_partial::<L, f32>(from.as_ptr(), from.len())
                    };
                    value.store(to.as_mut_ptr());
                }
            }
        }
    }
}
