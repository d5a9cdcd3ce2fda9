//! What a tile is: some rows by some outputs, multiplied in registers.

use crate::{element::Float, simd::LANES};

/// Operands of one tile, and where its results go.
///
/// A *step* is eight inputs, one vector of lanes.
pub(crate) struct Tile {
    /// `[steps, ROWS, 8]`, packed; rows that do not exist are zeros.
    pub(super) x: *const f32,
    /// Rows that exist, at least one.
    pub(super) rows: usize,
    /// Outputs that exist, at least one.
    pub(super) outputs: usize,
    pub(super) steps: usize,
    /// `[ROWS, OUTPUTS, 8]`, in the tile's own order: where unfinished sums wait between pieces of
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
/// Lane `i` of a product's sum has the inputs `i`, `i + 8`, .. in ascending order, and the lanes are
/// added as [`Lanes::sum`](crate::simd::Lanes::sum) does, whatever the registers look like.
pub(crate) trait Tiles {
    /// Rows of a tile.
    const ROWS: usize;
    /// Outputs of a tile.
    const OUTPUTS: usize;
    /// Steps after which a panel is cut, so that a tile's operands stay in the first-level cache.
    const MAX_STEPS: usize;
    /// Floats of a tile's unfinished sums.
    const KEPT_LEN: usize = Self::ROWS * Self::OUTPUTS * LANES;

    /// Multiplies a tile with weights from a panel, `[steps, OUTPUTS, 8]`; outputs that do not exist
    /// are readable.
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
