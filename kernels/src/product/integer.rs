//! Products with weights of four or eight bits, in integers.
//!
//! A row is rounded to integers of 16 bits, with a scale for each group of inputs (`rows.rs`), so a
//! group's products with the codes of an output are summed exactly: in whatever order, by whatever
//! instruction. Few rows multiply codes in vector registers (`few.rs`), many in tiles (`many.rs`), and
//! every row gets the same bits. For a group whose codes are `c`, whose integers are `q` and whose
//! floats are `scale`, `bias` and `unit` (of the row), both compute in f32, each step rounded once:
//!
//! `sum = fma(unit, fma(bias, float(Σ q), scale * float(Σ c q)), sum)`, groups in ascending order.
//!
//! # Invariants
//! Sums fit into i32: `|q| <= 127 * 256`, `c <= 255`, and a group has at most 128 inputs.

mod few;
mod many;
mod rows;
mod weights;

use std::cell::RefCell;

use self::{
    rows::{GroupedRows, PackRows},
    weights::{Tiles, Unpacked},
};
use super::{
    Product, Span, Weight,
    amx::{ByteUnit, OUTPUTS},
    panels::{self, Layout, PAIR_OUTPUTS, Panel, Rows, Task},
};
use crate::pool::Shared;

const _: () = assert!(127 * 256 * 255 * 128 < i32::MAX as i64);

/// Up to so many rows are multiplied in vector registers.
const FEW_ROWS: usize = 2;

/// Multiply-adds that take as long as rounding an input.
const WORK_PER_INPUT: usize = 4;

/// What codes are.
#[derive(Clone, Copy)]
pub(crate) struct Coding {
    /// 4 or 8.
    pub(crate) bits: usize,
    /// 32, 64 or 128.
    pub(crate) group_size: usize,
}

/// Codes of some outputs.
#[derive(Clone, Copy)]
pub(crate) struct Codes {
    /// Of the first output; eight bits are a code, or two that follow each other, the lower first.
    pub(crate) ptr: *const u8,
    /// From one output to the next.
    pub(crate) row_size_bytes: usize,
    pub(crate) coding: Coding,
}

/// Scales and biases of sixteen groups.
#[derive(Clone, Copy, Default)]
pub(crate) struct SixteenGroups {
    pub(crate) scales: [f32; 16],
    pub(crate) biases: [f32; 16],
}

thread_local! {
    /// What a thread keeps between tasks.
    static SCRATCH: RefCell<Unpacked> = RefCell::default();
}

/// Computes a product. There is at least one input.
///
/// # Panics
/// As [`Product::compute`].
///
/// # Safety
/// The unit [is available](super::amx::is_available) and `W` is [`Weight::IS_INTEGER`].
pub(super) unsafe fn compute<W: Weight>(product: &Product<'_, W>, y: &mut [f32]) {
    let Some(group) = product.groups.first() else {
        return;
    };
    let coding = group.weight.codes(0).coding;
    let layout = Layout {
        lines_per_row: rows::lines_per_row(product.inputs, coding.group_size),
        work_per_input: WORK_PER_INPUT,
    };
    panels::compute(
        product,
        y,
        layout,
        // SAFETY: the caller's promise; each panel is packed once, before it is used.
        |rows, index| unsafe { pack(product, coding, rows, index) },
        |task, rows, y| {
            let block = Block {
                product,
                weight: product.groups[task.group].weight,
                coding,
                rows,
                y,
            };
            // SAFETY: the caller's promise.
            SCRATCH.with_borrow_mut(|weights| unsafe { block.run(task, weights) });
        },
    );
}

/// Packs one panel.
///
/// # Safety
/// As [`compute`], and nobody else uses the panel meanwhile.
unsafe fn pack<W>(product: &Product<'_, W>, coding: Coding, rows: &Rows<'_>, index: usize) {
    let panel = rows.panels[index];
    let num_lines = panel.rows * rows::lines_per_row(product.inputs, coding.group_size);
    // SAFETY: panels do not overlap; the rest is the caller's promise.
    unsafe {
        PackRows {
            x: &product.x[panel.first_row * product.inputs..],
            shape: GroupedRows::new(panel.rows, product.inputs, coding),
            halves: coding.bits == 4,
            to: rows.packed.part(panel.at, num_lines),
        }
        .run();
    }
}

/// Rows of one group and their weights.
struct Block<'a, W> {
    product: &'a Product<'a, W>,
    weight: W,
    coding: Coding,
    rows: &'a Rows<'a>,
    y: &'a Shared<f32>,
}

impl<W: Weight> Block<'_, W> {
    /// One task.
    ///
    /// # Safety
    /// As [`compute`].
    unsafe fn run(&self, task: &Task, weights: &mut Unpacked) {
        let num_groups = self.product.inputs / self.coding.group_size;
        let mut unit = None;
        for start in task.outputs.clone().step_by(PAIR_OUTPUTS) {
            let outputs = Span {
                first: start,
                len: PAIR_OUTPUTS.min(task.outputs.end - start),
            };
            // SAFETY: the caller's promise; a task runs alone on its thread.
            unsafe {
                weights.share(self.weight, outputs, num_groups);
                let mut tiles = None;
                for index in task.panels.clone() {
                    let panel = &self.rows.panels[index];
                    if panel.rows <= FEW_ROWS {
                        self.few(outputs, panel, weights);
                    } else {
                        self.many(outputs, panel, (&mut unit, &mut tiles), weights);
                    }
                }
            }
        }
    }

    /// Multiplies with a panel of few rows.
    ///
    /// # Safety
    /// As [`compute`]; the panel is packed, and no other task writes these results.
    unsafe fn few(&self, outputs: Span, panel: &Panel, weights: &Unpacked) {
        // SAFETY: the caller's promise.
        unsafe {
            few::Few {
                codes: self.weight.codes(outputs.first),
                outputs: outputs.len,
                weights,
                shape: GroupedRows::new(panel.rows, self.product.inputs, self.coding),
                x: self.rows.packed.column(panel.at).cast(),
                y: self.results(outputs, panel),
                y_stride: self.product.outputs,
            }
            .run();
        }
    }

    /// Multiplies with a panel of many rows. The unit is made for the first panel of a task, and the
    /// tiles for the first of these outputs.
    ///
    /// # Safety
    /// As [`Self::few`].
    unsafe fn many(
        &self,
        outputs: Span,
        panel: &Panel,
        (unit, tiles): (&mut Option<ByteUnit>, &mut Option<Tiles>),
        weights: &mut Unpacked,
    ) {
        let inputs = self.product.inputs;
        let shape = GroupedRows::new(panel.rows, inputs, self.coding);
        let codes = self.weight.codes(outputs.first);
        let next_size_bytes = match tiles {
            None => OUTPUTS * self.coding.group_size * self.coding.bits / 8,
            Some(_) => 0,
        };
        // SAFETY: the caller's promise.
        unsafe {
            let tiles = match *tiles {
                Some(tiles) => tiles,
                None => *tiles.insert(weights.tiles(codes, outputs.len, inputs)),
            };
            let unit = unit.get_or_insert_with(|| ByteUnit::new(panel.rows, shape.step_inputs));
            unit.set_columns(panel.rows);
            many::Many {
                tiles,
                next: codes.ptr.wrapping_add(PAIR_OUTPUTS * codes.row_size_bytes),
                next_size_bytes,
                outputs: outputs.len,
                weights,
                shape,
                x: self.rows.packed.column(panel.at).cast(),
                y: self.results(outputs, panel),
                y_stride: self.product.outputs,
            }
            .run(unit);
        }
    }

    /// Where the first result of a panel's first row is.
    ///
    /// # Safety
    /// As [`Self::few`].
    unsafe fn results(&self, outputs: Span, panel: &Panel) -> *mut f32 {
        let first = panel.first_row * self.product.outputs + outputs.first;
        // SAFETY: the caller's promise.
        unsafe { self.y.column(first) }
    }
}
