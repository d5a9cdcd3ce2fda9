//! One tile of queries against one chunk of keys, and the merging of such partial results.
//!
//! # Invariants
//! - Everything about a row (one query of one head) is computed from that row, its keys and its
//!   position in the chunk alone, in ascending order of keys.
//! - A key that a row does not see is never multiplied into it, whatever its bits are.

#![expect(
    clippy::needless_range_loop,
    reason = "tiles are indexed alike on both sides"
)]

use std::ops::Range;

use super::{
    native::{Call, PagedAttention},
    plan::{CHUNK, Tile, visible},
};
use crate::{
    dot::{self, Rows},
    element::Float,
    simd::{LANES, Lanes, Operation},
};

/// What a thread keeps between chunks. A row's partial result is `max`, `sum` and weighted values.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[rows, padded_dim]`, zero beyond `head_dim`.
    query: Vec<f32>,
    /// `[CHUNK, padded_dim]` keys, then values, as f32, zero beyond `head_dim`.
    panel: Vec<f32>,
    /// `[rows, CHUNK]` scores, then their exponentials.
    scores: Vec<f32>,
    /// Of the chunk at hand, laid out as [`Partial`].
    partial: Vec<f32>,
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

fn padded_dim(params: &PagedAttention) -> usize {
    params.head_dim.next_multiple_of(LANES)
}

/// Number of f32 in a partial result of `tile`.
pub(super) fn partial_size(params: &PagedAttention, tile: &Tile) -> usize {
    tile.num_tokens * params.group() * (padded_dim(params) + 2)
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
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

/// Computes the partial result of `tile` and `chunk` into the scratch.
pub(super) struct Attend<'a, 'c, T> {
    pub(super) call: &'a Call<'c, T>,
    pub(super) tile: &'a Tile,
    pub(super) chunk: usize,
    pub(super) scratch: &'a mut Scratch,
}

impl<T: Float> Operation for Attend<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let dim = padded_dim(self.call.params);
        let rows = self.tile.num_tokens * self.call.params.group();
        let keys = self.within_chunk(self.tile.keys(self.call.params.sliding_window));
        self.load::<L>(self.call.key_cache, keys.clone());
        let query = Rows {
            ptr: self.scratch.query.as_ptr(),
            stride: dim,
            count: rows,
        };
        let panel = Rows {
            ptr: self.scratch.panel[keys.start * dim..].as_ptr(),
            stride: dim,
            count: keys.len(),
        };
        let scores = self.scratch.scores[keys.start..].as_mut_ptr();
        // SAFETY: `begin` made room for all rows, and `keys` are within a chunk.
        unsafe { dot::products::<L, f32>(query, panel, dim, scores, CHUNK) };
        let size = partial_size(self.call.params, self.tile);
        self.scratch.partial[..size].fill(0.0);
        for row in 0..rows {
            self.exponentials::<L>(row);
        }
        self.load::<L>(self.call.value_cache, keys);
        let mut row = 0;
        while row < rows {
            row += if row + 4 <= rows {
                self.weigh::<L, 4>(row)
            } else {
                self.weigh::<L, 1>(row)
            };
        }
    }
}

impl<T: Float> Attend<'_, '_, T> {
    /// Positions as indices into this chunk.
    fn within_chunk(&self, positions: Range<usize>) -> Range<usize> {
        let first = self.chunk * CHUNK;
        let start = positions.start.max(first) - first;
        let end = positions.end.min(first + CHUNK).max(first) - first;
        start.min(end)..end
    }

    /// Keys of this chunk that `row` sees.
    fn keys_of(&self, row: usize) -> Range<usize> {
        let position = self.tile.first_position + row / self.call.params.group();
        self.within_chunk(visible(position, self.call.params.sliding_window))
    }

    /// Fetches rows `keys` of the chunk from the blocks of a cache into the panel.
    #[inline(always)]
    fn load<L: Lanes>(&mut self, cache: &[T], keys: Range<usize>) {
        let params = self.call.params;
        let (head_dim, dim) = (params.head_dim, padded_dim(params));
        let blocks = &self.call.batch.block_table[self.tile.request * params.max_blocks..];
        let full = head_dim / LANES * LANES;
        for key in keys {
            let position = self.chunk * CHUNK + key;
            let block = usize::try_from(blocks[position / params.block_size])
                .expect("block ids were checked");
            let slot = block * params.block_size + position % params.block_size;
            let from =
                &cache[(slot * params.num_kv_heads + self.tile.kv_head) * head_dim..][..head_dim];
            let to = &mut self.scratch.panel[key * dim..][..dim];
            let mut i = 0;
            while i < full {
                // SAFETY: `i + 8 <= head_dim`.
                unsafe { T::load::<L>(from.as_ptr().add(i)).store(to.as_mut_ptr().add(i)) };
                i += LANES;
            }
            for i in full..head_dim {
                to[i] = from[i].to_f32();
            }
            to[head_dim..].fill(0.0);
        }
    }

    /// Turns a row's products into exponentials relative to the greatest score.
    #[inline(always)]
    fn exponentials<L: Lanes>(&mut self, row: usize) {
        let keys = self.keys_of(row);
        if keys.is_empty() {
            return;
        }
        let params = self.call.params;
        let rows = self.tile.num_tokens * params.group();
        let first = keys.start / LANES * LANES;
        let end = keys.end.next_multiple_of(LANES);
        let scores = &mut self.scratch.scores[row * CHUNK..][..CHUNK];
        for chunk in scores[first..end].chunks_exact_mut(LANES) {
            // SAFETY: a chunk has eight elements.
            unsafe {
                let score = L::load(chunk.as_ptr()).mul(L::splat(params.scale));
                let score = match params.soft_cap {
                    Some(cap) => soft_cap(score, cap),
                    None => score,
                };
                score.store(chunk.as_mut_ptr());
            }
        }
        scores[first..keys.start].fill(f32::NEG_INFINITY);
        scores[keys.end..end].fill(f32::NEG_INFINITY);
        let mut max = L::splat(f32::NEG_INFINITY);
        for chunk in scores[first..end].chunks_exact(LANES) {
            // SAFETY: a chunk has eight elements.
            max = max.max(unsafe { L::load(chunk.as_ptr()) });
        }
        let max = max.max_lane();
        let mut sum = L::splat(0.0);
        for chunk in scores[first..end].chunks_exact_mut(LANES) {
            // SAFETY: a chunk has eight elements.
            unsafe {
                let exponential = L::load(chunk.as_ptr()).add(L::splat(-max)).exp();
                exponential.store(chunk.as_mut_ptr());
                sum = sum.add(exponential);
            }
        }
        let partial = &mut self.scratch.partial;
        partial[row] = max;
        partial[rows + row] = sum.sum();
    }

    /// Weighs the values for `R` rows from `row` on. Returns `R`.
    ///
    /// The rows go together through the keys that all of them see, alone through the others.
    #[inline(always)]
    fn weigh<L: Lanes, const R: usize>(&mut self, row: usize) -> usize {
        let mut shared = self.keys_of(row);
        for r in 1..R {
            let keys = self.keys_of(row + r);
            shared = shared.start.max(keys.start)..shared.end.min(keys.end);
        }
        if R == 1 || shared.is_empty() {
            for r in 0..R {
                let keys = self.keys_of(row + r);
                self.weigh_keys::<L, 1>(row + r, keys);
            }
            return R;
        }
        for r in 0..R {
            let start = self.keys_of(row + r).start;
            self.weigh_keys::<L, 1>(row + r, start..shared.start);
        }
        self.weigh_keys::<L, R>(row, shared.clone());
        for r in 0..R {
            let end = self.keys_of(row + r).end;
            self.weigh_keys::<L, 1>(row + r, shared.end..end);
        }
        R
    }

    /// Adds the weighted values of `keys` to `R` rows.
    #[inline(always)]
    fn weigh_keys<L: Lanes, const R: usize>(&mut self, row: usize, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        let dim = padded_dim(self.call.params);
        let rows = self.tile.num_tokens * self.call.params.group();
        let weights = self.scratch.scores[row * CHUNK..][..R * CHUNK].as_ptr();
        let panel = self.scratch.panel[..CHUNK * dim].as_ptr();
        let values = self.scratch.partial[2 * rows + row * dim..][..R * dim].as_mut_ptr();
        let mut column = 0;
        while column < dim {
            let rest = (dim - column) / LANES;
            // SAFETY: `column` and as many vectors as each call takes are within `dim`; `keys` are
            // within the chunk; the slices above have the rows.
            unsafe {
                let (panel, values) = (panel.add(column), values.add(column));
                let keys = keys.clone();
                column += LANES
                    * match rest {
                        1 => columns::<L, R, 1>(weights, panel, values, dim, keys),
                        2 => columns::<L, R, 2>(weights, panel, values, dim, keys),
                        8.. if R == 1 => columns::<L, R, 8>(weights, panel, values, dim, keys),
                        _ => columns::<L, R, 3>(weights, panel, values, dim, keys),
                    };
            }
        }
    }
}

/// `values[r] += weights[r][key] * panel[key]` for `R` rows and `O` vectors. Returns `O`.
///
/// # Safety
/// All pointers reach `R` rows, the keys, and `O` vectors.
#[inline(always)]
unsafe fn columns<L: Lanes, const R: usize, const O: usize>(
    weights: *const f32,
    panel: *const f32,
    values: *mut f32,
    dim: usize,
    keys: Range<usize>,
) -> usize {
    let mut acc = [[L::splat(0.0); O]; R];
    // SAFETY: the caller's promise.
    unsafe {
        for r in 0..R {
            for o in 0..O {
                acc[r][o] = L::load(values.add(r * dim + o * LANES));
            }
        }
        for key in keys {
            let mut value = [L::splat(0.0); O];
            for o in 0..O {
                value[o] = L::load(panel.add(key * dim + o * LANES));
            }
            for r in 0..R {
                let weight = L::splat(*weights.add(r * CHUNK + key));
                for o in 0..O {
                    acc[r][o] = value[o].mul_add(weight, acc[r][o]);
                }
            }
        }
        for r in 0..R {
            for o in 0..O {
                acc[r][o].store(values.add(r * dim + o * LANES));
            }
        }
    }
    O
}

/// `cap * tanh(score / cap)`, with tanh(x) = 1 - 2 / (exp(2 x) + 1).
#[inline(always)]
fn soft_cap<L: Lanes>(score: L, cap: f32) -> L {
    let one = L::splat(1.0);
    let exponential = score.mul(L::splat(2.0 / cap)).exp();
    let tanh = L::splat(-2.0).div(exponential.add(one)).add(one);
    tanh.mul(L::splat(cap))
}
