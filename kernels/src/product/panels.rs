//! Rows laid out for the matrix unit, in panels, and which of them meet which weights in which task.

use std::{
    cell::RefCell,
    ops::{Range, RangeInclusive},
};

use super::{
    Group, Product, Span, Weight,
    amx::{COLUMNS, OUTPUTS, PAIR},
};
use crate::{
    pool::{self, Shared},
    scratch::grow,
};

/// Bytes of weights that one task reads where there are few rows: no fewer, lest handing it out
/// counts, and no more than lets threads end together. What a task asks for ahead of itself at its
/// end goes to the cache of a core that does not use it, so many small ones cost memory's time.
const STREAM_SIZE_BYTES: RangeInclusive<usize> = 64 * 1024..=512 * 1024;

/// Bytes of packed rows that one task multiplies: what stays in the second-level cache beside the
/// weights.
const PANELS_SIZE_BYTES: usize = 768 * 1024;

/// Tasks that a thread should have, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// Words of a line.
const WIDTH: usize = 16;

/// Outputs that are multiplied together.
pub(crate) const PAIR_OUTPUTS: usize = PAIR * OUTPUTS;

/// A cache line, and a register.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; WIDTH]);

impl Line {
    pub(super) const ZERO: Self = Self([0; WIDTH]);
}

/// Up to 16 rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Index of its first line.
    pub(super) at: usize,
}

/// The rows of all groups.
pub(super) struct Rows<'a> {
    pub(super) panels: &'a [Panel],
    pub(super) packed: Shared<Line>,
}

/// What one task multiplies.
pub(super) struct Task {
    pub(super) group: usize,
    pub(super) panels: Range<usize>,
    pub(super) outputs: Range<usize>,
}

/// What packed rows take.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) lines_per_row: usize,
    /// To pack them: multiply-adds that cost as much.
    pub(super) work_per_input: usize,
}

/// Packs the rows of a product with `pack`, which gets the number of a panel, each once; then
/// multiplies them with the weights, in tasks that `run` gets.
///
/// # Panics
/// As [`Product::compute`].
pub(super) fn compute<W: Weight>(
    product: &Product<'_, W>,
    y: &mut [f32],
    layout: Layout,
    pack: impl Fn(&Rows<'_>, usize) + Send + Sync,
    run: impl Fn(&Task, &Rows<'_>, &Shared<f32>) + Send + Sync,
) {
    thread_local! {
        static PLAN: RefCell<Plan> = RefCell::default();
    }
    PLAN.with_borrow_mut(|plan| {
        let num_rows = plan.make(product, y.len(), layout.lines_per_row);
        let rows = Rows {
            panels: &plan.panels,
            packed: Shared::new(&mut plan.packed),
        };
        let work = num_rows * product.inputs * layout.work_per_input;
        for part in plan.parts.iter().filter(|part| !part.by_rows) {
            pool::for_each(part.panels.len, work, |index| {
                pack(&rows, part.panels.first + index);
            });
        }
        let num_tasks = plan.parts.last().map_or(0, |part| part.end_task);
        let y = Shared::new(y);
        pool::for_each(num_tasks, product.work(num_rows), |index| {
            let (part, task) = task(&plan.parts, index, product.outputs);
            if part.by_rows {
                task.panels.clone().for_each(|index| pack(&rows, index));
            }
            run(&task, &rows, &y);
        });
    });
}

/// What is laid out before the tasks begin.
#[derive(Default)]
struct Plan {
    parts: Vec<Part>,
    panels: Vec<Panel>,
    /// The rows of all panels, see [`Panel::at`].
    packed: Vec<Line>,
}

/// The tasks of one group of rows.
#[derive(Clone, Copy)]
struct Part {
    /// One past its last task, counted over all groups.
    end_task: usize,
    panels: Span,
    panels_per_task: usize,
    outputs_per_task: usize,
    /// A task takes all outputs and packs its panels itself, so that they do not come from the
    /// cache of another core.
    by_rows: bool,
}

impl Plan {
    /// Cuts a product into tasks, and makes room for its rows. Returns their number.
    fn make<W: Weight>(
        &mut self,
        product: &Product<'_, W>,
        y_len: usize,
        lines_per_row: usize,
    ) -> usize {
        let mut num_rows = 0;
        self.parts.clear();
        self.panels.clear();
        for Group { weight, rows } in product.groups {
            assert!((rows.first + rows.len) * product.inputs <= product.x.len());
            assert!((rows.first + rows.len) * product.outputs <= y_len);
            let first = self.panels.len();
            self.panels
                .extend((0..rows.len).step_by(COLUMNS).map(|row| Panel {
                    first_row: rows.first + row,
                    rows: COLUMNS.min(rows.len - row),
                    at: (num_rows + row) * lines_per_row,
                }));
            let panels = Span {
                first,
                len: self.panels.len() - first,
            };
            self.add(product, weight, panels, lines_per_row);
            num_rows += rows.len;
        }
        grow(&mut self.packed, num_rows * lines_per_row);
        num_rows
    }

    /// Cuts a group into tasks.
    fn add<W: Weight>(
        &mut self,
        product: &Product<'_, W>,
        weight: &W,
        panels: Span,
        lines_per_row: usize,
    ) {
        let panel_size_bytes = COLUMNS * lines_per_row * size_of::<Line>();
        let most = (PANELS_SIZE_BYTES / panel_size_bytes).clamp(1, panels.len.max(1));
        let wanted = pool::num_threads() * TASKS_PER_THREAD;
        let by_rows = panels.len >= wanted;
        let (panels_per_task, outputs) = if by_rows {
            (most.min(panels.len.div_ceil(wanted)), product.outputs)
        } else if panels.len == 1 {
            let [least, most] = [STREAM_SIZE_BYTES.start(), STREAM_SIZE_BYTES.end()]
                .map(|size| size / weight.output_size_bytes().max(1));
            (1, (product.outputs / wanted).clamp(least, most))
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
}

/// Task `index` of all groups, and the part that it is of.
fn task(parts: &[Part], index: usize, outputs: usize) -> (&Part, Task) {
    let group = parts.partition_point(|part| part.end_task <= index);
    let first_task = parts[..group].last().map_or(0, |part| part.end_task);
    let (part, index) = (&parts[group], index - first_task);
    // Neighbours share their weights.
    let num_panel_blocks = part.panels.len.div_ceil(part.panels_per_task);
    let first = index / num_panel_blocks * part.outputs_per_task;
    let end = outputs.min(first + part.outputs_per_task);
    let first_panel = index % num_panel_blocks * part.panels_per_task;
    let end_panel = part.panels.len.min(first_panel + part.panels_per_task);
    let task = Task {
        group,
        panels: part.panels.first + first_panel..part.panels.first + end_panel,
        outputs: first..end,
    };
    (part, task)
}
