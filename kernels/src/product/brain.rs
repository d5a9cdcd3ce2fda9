//! Products with weights of bf16, on the matrix unit.
//!
//! A row of f32 is the sum of three rows of bf16, to the last bit (`pack.rs`). Each is a column of a
//! product of bf16 with sums in f32, whose parts are added in the end; so nothing is lost by the
//! narrow format, and three multiplications of it are five times faster than one of f32.
//!
//! # Invariants
//! A result's bits depend on its row and its weights alone: columns are summed each by itself, and
//! few rows (`Unit::one`) take the same steps as many (`Unit::three`).

mod finish;
mod pack;

use std::cell::RefCell;

use self::pack::PackPanel;
use super::{
    Product, Span, Weight,
    amx::{COLUMNS, INPUTS, OUTPUTS, Operands, PAIR, TILE_SIZE_BYTES, Unit},
    panels::{self, Layout, Line, PAIR_OUTPUTS, Panel, Rows, Task},
};
use crate::{pool::Shared, scratch::grow};

/// Rows of bf16 that make up one of f32.
const PARTS: usize = 3;

/// What is asked for ahead in a step: as much as two tiles of weights.
const NEXT_SIZE_BYTES: usize = PAIR * TILE_SIZE_BYTES;

/// Floats of a tile of sums.
const SUMS_LEN: usize = OUTPUTS * COLUMNS;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    /// `[2, steps]` tiles of weights that do not stand in memory as tiles are read.
    weights: Vec<Line>,
    /// `[2, 3]` tiles of sums.
    sums: Vec<Line>,
}

/// Computes a product. There is at least one input.
///
/// # Panics
/// As [`Product::compute`].
///
/// # Safety
/// The unit [is available](super::amx::is_available) and `W` is what it multiplies.
pub(super) unsafe fn compute<W: Weight>(product: &Product<'_, W>, y: &mut [f32]) {
    let layout = Layout {
        lines_per_row: PARTS * product.inputs.div_ceil(INPUTS),
        work_per_input: PARTS,
    };
    panels::compute(
        product,
        y,
        layout,
        // SAFETY: the caller's promise; each panel is packed once, before it is used.
        |rows, index| unsafe { pack(product, rows, index) },
        |task, rows, y| {
            let block = Block {
                product,
                weight: product.groups[task.group].weight,
                rows,
                y,
            };
            // SAFETY: the caller's promise.
            SCRATCH.with_borrow_mut(|scratch| unsafe { block.run(task, scratch) });
        },
    );
}

/// Packs one panel.
///
/// # Safety
/// As [`compute`], and nobody else uses the panel meanwhile.
unsafe fn pack<W>(product: &Product<'_, W>, rows: &Rows<'_>, index: usize) {
    let panel = rows.panels[index];
    let num_lines = panel.rows * PARTS * product.inputs.div_ceil(INPUTS);
    // SAFETY: panels do not overlap; the rest is the caller's promise.
    unsafe {
        PackPanel {
            x: &product.x[panel.first_row * product.inputs..],
            inputs: product.inputs,
            panel,
            to: rows.packed.part(panel.at, num_lines),
        }
        .run();
    }
}

/// Rows of one group and their weights.
struct Block<'a, W> {
    product: &'a Product<'a, W>,
    weight: W,
    rows: &'a Rows<'a>,
    y: &'a Shared<f32>,
}

/// Two tiles of weights, and how to read them.
struct Tiles {
    outputs: Span,
    /// Where they are read from, and the bytes between outputs and between steps.
    weights: [*const u16; PAIR],
    row_size_bytes: usize,
    step_size_bytes: usize,
    /// What comes after them in memory, to be asked for.
    next: *const u16,
    /// They have to be unpacked first.
    unpacked: bool,
}

impl<W: Weight> Block<'_, W> {
    /// One task.
    ///
    /// # Safety
    /// As [`compute`].
    unsafe fn run(&self, task: &Task, scratch: &mut Scratch) {
        let (end, panels) = (task.outputs.end, task.panels.clone());
        self.make_room(scratch);
        // SAFETY: the caller's promise; a task runs alone on its thread.
        unsafe {
            let mut unit = Unit::new(self.rows.panels[panels.start].columns());
            for first in task.outputs.clone().step_by(PAIR_OUTPUTS) {
                let outputs = Span {
                    first,
                    len: PAIR_OUTPUTS.min(end - first),
                };
                let tiles = self.tiles(outputs, scratch);
                for index in panels.clone() {
                    unit.set_columns(self.rows.panels[index].columns());
                    if tiles.unpacked && index == panels.start {
                        self.unpack(&tiles);
                    }
                    self.multiply(&unit, &tiles, &self.rows.panels[index], scratch);
                }
            }
        }
    }

    fn make_room(&self, scratch: &mut Scratch) {
        let steps = self.product.inputs.div_ceil(INPUTS);
        let lines = TILE_SIZE_BYTES / size_of::<Line>();
        grow(&mut scratch.weights, PAIR * steps * lines);
        grow(&mut scratch.sums, PAIR * PARTS * lines);
    }

    /// How the weights of some outputs are read.
    fn tiles(&self, outputs: Span, scratch: &mut Scratch) -> Tiles {
        let steps = self.product.inputs.div_ceil(INPUTS);
        let is_whole = outputs.len == PAIR_OUTPUTS && self.product.inputs.is_multiple_of(INPUTS);
        if is_whole {
            let stands = self.weight.brain_rows(outputs.first);
            let second = stands.ptr.wrapping_add(OUTPUTS * stands.stride);
            return Tiles {
                outputs,
                weights: [stands.ptr, second],
                row_size_bytes: stands.stride * size_of::<u16>(),
                step_size_bytes: INPUTS * size_of::<u16>(),
                next: stands.ptr.wrapping_add(PAIR_OUTPUTS * stands.stride),
                unpacked: false,
            };
        }
        let first = scratch.weights.as_mut_ptr().cast::<u16>();
        let second = first.wrapping_add(steps * OUTPUTS * INPUTS);
        Tiles {
            outputs,
            weights: [first, second],
            row_size_bytes: INPUTS * size_of::<u16>(),
            step_size_bytes: TILE_SIZE_BYTES,
            next: first,
            unpacked: true,
        }
    }

    /// Brings weights into the scratch, filled up with zeros.
    ///
    /// # Safety
    /// As [`compute`].
    unsafe fn unpack(&self, tiles: &Tiles) {
        let inputs = self.product.inputs;
        let steps = inputs.div_ceil(INPUTS);
        for output in 0..PAIR_OUTPUTS {
            let to = tiles.weights[output / OUTPUTS].cast_mut();
            let to = to.wrapping_add(output % OUTPUTS * INPUTS);
            for step in 0..steps {
                let to = to.wrapping_add(step * OUTPUTS * INPUTS);
                // SAFETY: `make_room` made room, and unpacked weights are in the scratch.
                unsafe { to.write_bytes(0, INPUTS) };
                if output < tiles.outputs.len {
                    let row = self.weight.brain_rows(tiles.outputs.first + output).ptr;
                    let len = INPUTS.min(inputs - step * INPUTS);
                    // SAFETY: inputs of an output that exists.
                    unsafe { to.copy_from_nonoverlapping(row.add(step * INPUTS), len) };
                }
            }
        }
    }

    /// Multiplies with a panel, and writes the results.
    ///
    /// # Safety
    /// As [`compute`]; the weights are unpacked if they have to be.
    unsafe fn multiply(&self, unit: &Unit, tiles: &Tiles, panel: &Panel, scratch: &mut Scratch) {
        let sums = scratch.sums.as_mut_ptr().cast::<f32>();
        // SAFETY: the caller's promise; the panel's lines are there, packed, and only read now;
        // `make_room` made room for six tiles.
        unsafe {
            let operands = Operands {
                weights: tiles.weights,
                row_size_bytes: tiles.row_size_bytes,
                step_size_bytes: tiles.step_size_bytes,
                x: self.rows.packed.column(panel.at).cast(),
                steps: self.product.inputs.div_ceil(INPUTS),
                next: tiles.next,
                next_step_size_bytes: if tiles.unpacked { 0 } else { NEXT_SIZE_BYTES },
            };
            if panel.is_one_tile() {
                unit.one(&operands, sums);
            } else {
                unit.three(&operands, sums);
            }
            self.write(tiles, panel, sums);
        }
    }

    /// Writes the results of two tiles of outputs.
    ///
    /// # Safety
    /// As [`compute`]; `sums` holds the tiles of a panel.
    unsafe fn write(&self, tiles: &Tiles, panel: &Panel, sums: *const f32) {
        for nth in 0..tiles.outputs.len.div_ceil(OUTPUTS) {
            let first = tiles.outputs.first + nth * OUTPUTS;
            let start = panel.first_row * self.product.outputs + first;
            // SAFETY: the rows and outputs exist, and no other task writes them.
            unsafe {
                finish::Write {
                    sums: sums.add(nth * panel.num_tiles() * SUMS_LEN),
                    rows: panel.rows,
                    is_one_tile: panel.is_one_tile(),
                    outputs: OUTPUTS.min(tiles.outputs.len - nth * OUTPUTS),
                    y: self.y.column(start),
                    y_stride: self.product.outputs,
                }
                .run();
            }
        }
    }
}
