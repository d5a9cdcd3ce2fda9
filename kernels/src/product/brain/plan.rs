//! Which rows meet which weights in which task, and the rows laid out for it.

use super::{
    COLUMNS, INPUTS, PAIR_OUTPUTS, PARTS, Span,
    pack::{Line, PackPanel, Panel},
};
use crate::{
    pool::{self, Shared},
    product::{Product, Weight},
    scratch::grow,
};

/// Bytes of weights that one task reads, at least, where there are few rows.
const STREAM_SIZE_BYTES: usize = 64 * 1024;

/// Bytes of packed rows that one task multiplies: what stays in the second-level cache beside the
/// weights.
const PANELS_SIZE_BYTES: usize = 768 * 1024;

/// Tasks that a thread should have, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// What is laid out before the tasks begin.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) parts: Vec<Part>,
    pub(super) panels: Vec<Panel>,
    /// The rows of all panels, see [`Panel::at`].
    packed: Vec<Line>,
}

/// The tasks of one group of rows.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// One past its last task, counted over all groups.
    pub(super) end_task: usize,
    pub(super) panels: Span,
    pub(super) panels_per_task: usize,
    pub(super) outputs_per_task: usize,
    /// A task takes all outputs and packs its panels itself, so that they do not come from the
    /// cache of another core.
    pub(super) by_rows: bool,
}

impl Plan {
    /// Cuts the rows of a group into panels, and the group into tasks.
    pub(super) fn add<W: Weight>(
        &mut self,
        product: &Product<'_, W>,
        weight: &W,
        rows: Span,
        before: usize,
    ) {
        let steps = product.inputs.div_ceil(INPUTS);
        let first = self.panels.len();
        for row in (0..rows.len).step_by(COLUMNS) {
            self.panels.push(Panel {
                first_row: rows.first + row,
                rows: COLUMNS.min(rows.len - row),
                at: (before + row) * PARTS * steps,
            });
        }
        let panels = Span {
            first,
            len: self.panels.len() - first,
        };
        let panel_size_bytes = COLUMNS * PARTS * steps * size_of::<Line>();
        let most = (PANELS_SIZE_BYTES / panel_size_bytes).clamp(1, panels.len.max(1));
        let wanted = pool::num_threads() * TASKS_PER_THREAD;
        let by_rows = panels.len >= wanted;
        let (panels_per_task, outputs) = if by_rows {
            (most.min(panels.len.div_ceil(wanted)), product.outputs)
        } else if panels.len == 1 {
            let outputs = STREAM_SIZE_BYTES / weight.output_size_bytes().max(1);
            (1, outputs)
        } else {
            (most, product.outputs * panels.len.div_ceil(most) / wanted)
        };
        let outputs_per_task = outputs.div_ceil(PAIR_OUTPUTS).max(1) * PAIR_OUTPUTS;
        let num_tasks =
            product.outputs.div_ceil(outputs_per_task) * panels.len.div_ceil(panels_per_task);
        self.parts.push(Part {
            end_task: self.parts.last().map_or(0, |part| part.end_task) + num_tasks,
            panels,
            panels_per_task,
            outputs_per_task,
            by_rows,
        });
    }

    /// Makes room for all rows, and packs those that several tasks multiply.
    ///
    /// # Safety
    /// As [`compute`](super::compute).
    pub(super) unsafe fn pack<W: Weight>(&mut self, product: &Product<'_, W>, num_rows: usize) {
        grow(
            &mut self.packed,
            num_rows * PARTS * product.inputs.div_ceil(INPUTS),
        );
        let work = num_rows * product.inputs * PARTS;
        let (parts, rows) = self.rows();
        for part in parts.iter().filter(|part| !part.by_rows) {
            pool::for_each(part.panels.len, work, |index| {
                // SAFETY: the caller's promise; each task has a panel of its own.
                unsafe { rows.pack(product, part.panels.first + index) };
            });
        }
    }

    /// The tasks, and the rows for them.
    pub(super) fn rows(&mut self) -> (&[Part], Rows<'_>) {
        let rows = Rows {
            panels: &self.panels,
            packed: Shared::new(&mut self.packed),
        };
        (&self.parts, rows)
    }
}

/// The rows of all groups.
pub(super) struct Rows<'a> {
    pub(super) panels: &'a [Panel],
    pub(super) packed: Shared<Line>,
}

impl Rows<'_> {
    /// Packs one panel.
    ///
    /// # Safety
    /// As [`compute`](super::compute), and nobody else uses the panel meanwhile.
    pub(super) unsafe fn pack<W>(&self, product: &Product<'_, W>, index: usize) {
        let panel = self.panels[index];
        let steps = product.inputs.div_ceil(INPUTS);
        // SAFETY: panels do not overlap; the rest is the caller's promise.
        unsafe {
            PackPanel {
                x: &product.x[panel.first_row * product.inputs..],
                inputs: product.inputs,
                panel,
                to: self.packed.part(panel.at, panel.rows * PARTS * steps),
            }
            .run();
        }
    }
}
