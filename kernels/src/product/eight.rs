//! Tiles of three rows by four outputs in registers of eight lanes: twelve sums, three rows and one
//! weight are AVX2's sixteen registers.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use super::{
    Span, Weight,
    stream::Stream,
    tile::{Tile, Tiles, WeightRows},
};
use crate::{
    dot::Rows,
    element::Float,
    simd::{LANES, Lanes, Operation, vectorized},
};

/// For any CPU.
pub(super) struct Eight;

const ROWS: usize = 3;
const OUTPUTS: usize = 4;

impl Tiles for Eight {
    const LANES: usize = LANES;
    const ROWS: usize = ROWS;
    const OUTPUTS: usize = OUTPUTS;
    /// 512 inputs: 6 KiB of rows and 8 KiB of weights.
    const MAX_STEPS: usize = 64;
    /// Widening costs two instructions a vector, too much to do it again for every three rows.
    const READS_ROWS: bool = false;

    unsafe fn stream<W: Weight>(
        weight: W,
        x: Rows<f32>,
        outputs: Span,
        out: *mut f32,
        out_stride: usize,
    ) {
        vectorized(Stream {
            weight,
            x,
            outputs,
            out,
            out_stride,
        });
    }

    unsafe fn panel(tile: &Tile, panel: *const f32) {
        vectorized(Multiply { tile, panel });
    }

    unsafe fn rows<W: Float>(_: &Tile, _: WeightRows<W>, _: bool) {
        unreachable!("weights come from a panel")
    }
}

struct Multiply<'a> {
    tile: &'a Tile,
    panel: *const f32,
}

impl Operation for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tile, panel } = self;
        let mut sums = [[L::splat(0.0); OUTPUTS]; ROWS];
        // SAFETY: whoever made the tile has promised that its pointers reach as far as it says.
        unsafe {
            if !tile.is_first {
                for r in 0..ROWS {
                    for o in 0..OUTPUTS {
                        sums[r][o] = L::load(tile.kept.add((r * OUTPUTS + o) * LANES));
                    }
                }
            }
            let (mut x, mut weights) = (tile.x, panel);
            for _ in 0..tile.steps {
                let mut rows = [L::splat(0.0); ROWS];
                for r in 0..ROWS {
                    rows[r] = L::load(x.add(r * LANES));
                }
                for o in 0..OUTPUTS {
                    let weight = L::load(weights.add(o * LANES));
                    for r in 0..ROWS {
                        sums[r][o] = rows[r].mul_add(weight, sums[r][o]);
                    }
                }
                x = x.add(ROWS * LANES);
                weights = weights.add(OUTPUTS * LANES);
            }
            for r in 0..ROWS {
                if tile.is_last && r < tile.rows {
                    let results = L::sum_four(sums[r]);
                    let y = tile.y.add(r * tile.y_stride);
                    for o in 0..tile.outputs {
                        *y.add(o) = results[o];
                    }
                } else if !tile.is_last {
                    for o in 0..OUTPUTS {
                        sums[r][o].store(tile.kept.add((r * OUTPUTS + o) * LANES));
                    }
                }
            }
        }
    }
}
