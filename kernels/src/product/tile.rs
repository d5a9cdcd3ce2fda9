//! What a tile is: some rows by some outputs, multiplied in registers.

use super::{Span, Weight};
use crate::{dot::Rows, element::Float};

/// Operands of one tile, and where its results go.
///
/// A *step* is as many inputs as a sum has lanes.
pub(crate) struct Tile {
    /// `[steps, ROWS, LANES]`, packed; rows that do not exist are zeros.
    pub(super) x: *const f32,
    /// Rows that exist, at least one.
    pub(super) rows: usize,
    /// Outputs that exist, at least one.
    pub(super) outputs: usize,
    pub(super) steps: usize,
    /// `[ROWS, OUTPUTS, LANES]`, in the tile's own order: where unfinished sums wait between pieces of
    /// the input axis.
    pub(super) kept: *mut f32,
    /// This piece is the first: sums begin at zero.
    pub(super) is_first: bool,
    /// This piece is the last: sums are finished and written.
    pub(super) is_last: bool,
    pub(super) y: *mut f32,
    pub(super) y_stride: usize,
}

/// Where weights are that stand as rows in memory.
#[derive(Clone, Copy)]
pub(crate) struct WeightRows<W> {
    /// Of the tile's first output.
    pub(crate) ptr: *const W,
    /// Elements from one output to the next.
    pub(crate) stride: usize,
}

/// A way to multiply tiles, for one kind of CPU.
///
/// Lane `i` of a product's sum has the inputs `i`, `i + LANES`, .. in ascending order. Eight lanes are
/// added as [`Lanes::sum`](crate::simd::Lanes::sum) does, of sixteen each half so, and then both;
/// whatever the registers look like.
pub(crate) trait Tiles {
    /// Lanes of a sum: eight or sixteen.
    const LANES: usize;
    /// Rows of a tile.
    const ROWS: usize;
    /// Outputs of a tile.
    const OUTPUTS: usize;
    /// Steps after which a panel is cut, so that a tile's operands stay in the first-level cache.
    const MAX_STEPS: usize;
    /// Floats of a tile's unfinished sums.
    const KEPT_LEN: usize = Self::ROWS * Self::OUTPUTS * Self::LANES;

    /// Few rows: as [`Weight::stream`].
    ///
    /// # Safety
    /// As there.
    unsafe fn stream<W: Weight>(
        weight: W,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    );

    /// Multiplies a tile with weights from a panel, `[steps, OUTPUTS, LANES]`; outputs that do not
    /// exist are readable.
    ///
    /// # Safety
    /// Pointers reach what the fields of [`Tile`] describe.
    unsafe fn panel(tile: &Tile, panel: *const f32);

    /// Whether weights in a floating-point format need no panel.
    const READS_ROWS: bool;

    /// Multiplies a tile with weights as they stand in memory. `ahead` says that these come from
    /// far, and the next tile's should be asked for.
    ///
    /// # Safety
    /// As [`Self::panel`]. Only where [`Self::READS_ROWS`].
    unsafe fn rows<W: Float>(tile: &Tile, weight: WeightRows<W>, ahead: bool);
}
