//! What a thread holds of one tile of queries: its result so far, and the merging of partial ones.

use super::{
    native::{Call, PagedAttention},
    plan::{CHUNK, Tile},
};
use crate::{scratch::grow, simd::LANES};

/// What a thread keeps between chunks. A row's partial result is `max`, `sum` and weighted values.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[rows, padded_dim]`, zero beyond `head_dim`.
    pub(super) query: Vec<f32>,
    /// `[CHUNK, padded_dim]` keys, then values, as f32, zero beyond `head_dim`.
    pub(super) panel: Vec<f32>,
    /// `[rows, CHUNK]` scores, then their exponentials.
    pub(super) scores: Vec<f32>,
    /// Of the chunk at hand, laid out as [`Partial`].
    pub(super) partial: Vec<f32>,
    /// Of all chunks so far, laid out as [`Partial`].
    state: Vec<f32>,
}

/// Views of a flat buffer: `[rows]` greatest scores, `[rows]` sums of exponentials relative to it,
/// `[rows, padded_dim]` values weighted by them. A sum of 0 says that the row saw no key.
pub(super) struct Partial<'a> {
    max: &'a mut [f32],
    sum: &'a mut [f32],
    values: &'a mut [f32],
}

impl<'a> Partial<'a> {
    fn new(buffer: &'a mut [f32], rows: usize) -> Self {
        let (max, rest) = buffer.split_at_mut(rows);
        let (sum, values) = rest.split_at_mut(rows);
        Self { max, sum, values }
    }
}

/// `head_dim`, rounded up to whole vectors.
pub(super) fn padded_dim(params: &PagedAttention) -> usize {
    params.head_dim.next_multiple_of(LANES)
}

/// Number of f32 in a partial result of `tile`.
pub(super) fn partial_size(params: &PagedAttention, tile: &Tile) -> usize {
    tile.num_tokens * params.group() * (padded_dim(params) + 2)
}

impl Scratch {
    /// Makes room for `tile`, fetches its queries and starts its result.
    pub(super) fn begin<T>(&mut self, call: &Call<'_, T>, tile: &Tile) {
        let (params, dim) = (call.params, padded_dim(call.params));
        let group = params.group();
        let rows = tile.num_tokens * group;
        grow(&mut self.query, rows * dim);
        grow(&mut self.panel, CHUNK * dim);
        grow(&mut self.scores, rows * CHUNK);
        grow(&mut self.partial, partial_size(params, tile));
        grow(&mut self.state, partial_size(params, tile));
        let state = Partial::new(&mut self.state[..partial_size(params, tile)], rows);
        state.values.fill(0.0);
        for row in 0..rows {
            let head = tile.kv_head * group + row % group;
            (state.max[row], state.sum[row]) = match call.sinks {
                Some(sinks) => (sinks[head], 1.0),
                None => (f32::NEG_INFINITY, 0.0),
            };
            let from =
                ((tile.first_token + row / group) * params.num_heads + head) * params.head_dim;
            let to = &mut self.query[row * dim..][..dim];
            to[..params.head_dim].copy_from_slice(&call.query[from..][..params.head_dim]);
            to[params.head_dim..].fill(0.0);
        }
    }

    /// The partial result of the chunk at hand.
    pub(super) fn partial(&self, size: usize) -> &[f32] {
        &self.partial[..size]
    }

    /// Adds the partial result of the chunk at hand to the result.
    pub(super) fn merge_own(&mut self, params: &PagedAttention, tile: &Tile) {
        let size = partial_size(params, tile);
        let Self { partial, state, .. } = self;
        merge(
            &mut state[..size],
            &mut partial[..size],
            tile.num_tokens * params.group(),
        );
    }

    /// Adds a partial result from elsewhere to the result.
    pub(super) fn merge(&mut self, params: &PagedAttention, tile: &Tile, partial: &mut [f32]) {
        let rows = tile.num_tokens * params.group();
        merge(&mut self.state[..partial.len()], partial, rows);
    }

    /// Writes the result of `tile`.
    pub(super) fn finish<T>(&mut self, call: &Call<'_, T>, tile: &Tile) {
        let (params, dim) = (call.params, padded_dim(call.params));
        let group = params.group();
        let rows = tile.num_tokens * group;
        let state = Partial::new(&mut self.state[..partial_size(params, tile)], rows);
        for row in 0..rows {
            let head = tile.kv_head * group + row % group;
            let to = ((tile.first_token + row / group) * params.num_heads + head) * params.head_dim;
            // SAFETY: one task finishes a tile, and tiles do not overlap.
            let out = unsafe { call.out.part(to, params.head_dim) };
            for (out, value) in out.iter_mut().zip(&state.values[row * dim..]) {
                *out = value / state.sum[row];
            }
        }
    }
}

/// Online softmax: both sides are scaled to the greater maximum.
fn merge(state: &mut [f32], partial: &mut [f32], rows: usize) {
    let state = Partial::new(state, rows);
    let partial = Partial::new(partial, rows);
    let dim = state.values.len() / rows;
    for row in 0..rows {
        if partial.sum[row] == 0.0 {
            continue;
        }
        let max = state.max[row].max(partial.max[row]);
        let keep = (state.max[row] - max).exp();
        let take = (partial.max[row] - max).exp();
        state.max[row] = max;
        state.sum[row] = state.sum[row] * keep + partial.sum[row] * take;
        let values = &mut state.values[row * dim..][..dim];
        for (value, new) in values.iter_mut().zip(&partial.values[row * dim..]) {
            *value = *value * keep + new * take;
        }
    }
}
