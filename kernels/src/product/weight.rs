//! What products ask of weights, whatever their format.

#[cfg(target_arch = "x86_64")]
use super::{Codes, SixteenGroups};
use super::{
    Span,
    tile::{Tile, Tiles, WeightRows},
};
use crate::{dot::Rows, simd::Lanes};

/// A matrix of weights, `[outputs, inputs]`, in some format. A view: copies are free.
pub(crate) trait Weight: Copy + Send + Sync {
    /// Bytes of the weights of one output.
    fn output_size_bytes(&self) -> usize;

    /// `out[r * out_stride + o]` = row `r` of `x` times the weights of output `first + o`, for few
    /// rows and the `count` outputs from `first` on.
    ///
    /// # Safety
    /// Rows of `x` have as many elements as the weights have inputs; the outputs exist; `out` has
    /// room for the results.
    unsafe fn stream<L: Lanes>(self, x: Rows<f32>, outputs: Span, out: *mut f32, out_stride: usize);

    /// Writes a piece of the weights of one output as f32: eight inputs at `to`, and so on, with
    /// the two strides in turns; the last eight are filled up with zeros.
    ///
    /// # Safety
    /// Output and inputs exist, `inputs.first` is a multiple of 64, strides are at least eight, and
    /// there is room for all eights.
    unsafe fn convert<L: Lanes>(
        self,
        output: usize,
        inputs: Span,
        to: *mut f32,
        strides: [usize; 2],
    );

    /// Sums have sixteen lanes where AVX-512 is: see [`Self::stream_sixteen`].
    const IN_SIXTEEN_LANES: bool = false;

    /// As [`Self::stream`], in sixteen lanes.
    ///
    /// # Safety
    /// As there. Only where [`Self::IN_SIXTEEN_LANES`], and on a CPU with AVX-512 (F, BW, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    unsafe fn stream_sixteen(self, _: Rows<f32>, _: Span, _: *mut f32, _: usize) {
        unreachable!("these weights stream in eight lanes")
    }

    /// Weights are floating-point numbers, one output after the other: see [`Self::multiply`].
    const STANDS_IN_ROWS: bool = false;

    /// Multiplies a tile with the weights from an output and a step on, as they stand in memory.
    ///
    /// # Safety
    /// Only where [`Self::STANDS_IN_ROWS`], and as [`Tiles::rows`].
    unsafe fn multiply<K: Tiles>(self, _at: (usize, usize), _tile: &Tile, _ahead: bool) {
        unreachable!("these weights are converted")
    }

    /// Weights are bf16, one output after the other.
    const IS_BRAIN: bool = false;

    /// Where the weights from an output on stand.
    ///
    /// # Panics
    /// If not [`Self::IS_BRAIN`].
    fn brain_rows(&self, _output: usize) -> WeightRows<u16> {
        unreachable!("these weights are no bf16")
    }

    /// Weights are integers of four or eight bits, whose groups share a scale and a bias.
    const IS_INTEGER: bool = false;

    /// The integers from an output on.
    ///
    /// # Panics
    /// If not [`Self::IS_INTEGER`].
    #[cfg(target_arch = "x86_64")]
    fn codes(&self, _output: usize) -> Codes {
        unreachable!("these weights are no integers")
    }

    /// Writes what up to sixteen groups of an output share; more are zero. Asks for what those of the
    /// output share that comes [`PAIR_OUTPUTS`](super::PAIR_OUTPUTS) later.
    ///
    /// # Safety
    /// Output and groups exist. Only where [`Self::IS_INTEGER`], and on a CPU with AVX-512 (F, BW,
    /// DQ, VL).
    #[cfg(target_arch = "x86_64")]
    unsafe fn shared(&self, _output: usize, _groups: Span, _to: &mut SixteenGroups) {
        unreachable!("these weights are no integers")
    }
}
