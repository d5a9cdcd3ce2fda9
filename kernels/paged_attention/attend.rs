//! One tile of queries against one chunk of keys.
//!
//! Keys are fetched into a panel of f32, multiplied with all rows of the tile, and the products
//! become exponentials; then the values take the keys' place and are weighed by them.
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
    chunk::{Scratch, padded_dim, partial_size},
    native::{Call, PagedAttention},
    plan::{self, CHUNK, Tile, visible},
};
use crate::{
    dot::{self, Rows},
    element::Float,
    simd::{LANES, Lanes, Operation, vectorized},
};

/// How many keys are asked for ahead of the one that is fetched.
const PREFETCH_KEYS: usize = 16;

const CACHE_LINE_SIZE_BYTES: usize = 64;

/// Computes the partial result of `tile` and `chunk` into the scratch.
pub(super) fn attend<T: Float>(
    call: &Call<'_, T>,
    tile: &Tile,
    chunk: usize,
    scratch: &mut Scratch,
) {
    let place = Place {
        params: call.params,
        tile,
        chunk,
    };
    let fetch = |cache: &[T], panel: &mut [f32]| {
        vectorized(Fetch {
            place,
            cache,
            blocks: &call.batch.block_table[tile.request * call.params.max_blocks..],
            panel,
        });
    };
    fetch(call.key_cache, &mut scratch.panel);
    vectorized(Score {
        place,
        scratch: &mut *scratch,
    });
    fetch(call.value_cache, &mut scratch.panel);
    vectorized(Weigh { place, scratch });
}

/// Which queries and which keys.
#[derive(Clone, Copy)]
struct Place<'a> {
    params: &'a PagedAttention,
    tile: &'a Tile,
    chunk: usize,
}

impl Place<'_> {
    fn dim(&self) -> usize {
        padded_dim(self.params)
    }

    fn rows(&self) -> usize {
        self.tile.num_tokens * self.params.group()
    }

    /// Keys of this chunk that any row sees.
    fn keys(&self) -> Range<usize> {
        self.within_chunk(self.tile.keys(self.params.sliding_window))
    }

    /// Keys of this chunk that `row` sees.
    fn keys_of(&self, row: usize) -> Range<usize> {
        let position = self.tile.first_position + row / self.params.group();
        self.within_chunk(visible(position, self.params.sliding_window))
    }

    /// Positions as indices into this chunk.
    fn within_chunk(&self, positions: Range<usize>) -> Range<usize> {
        let first = self.chunk * CHUNK;
        let start = positions.start.max(first) - first;
        let end = positions.end.min(first + CHUNK).max(first) - first;
        start.min(end)..end
    }
}

/// Fetches the rows of a chunk from the blocks of a cache into the panel.
struct Fetch<'a, T> {
    place: Place<'a>,
    cache: &'a [T],
    blocks: &'a [i32],
    panel: &'a mut [f32],
}

impl<T: Float> Operation for Fetch<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Place {
            params,
            tile,
            chunk,
        } = self.place;
        let (head_dim, dim) = (params.head_dim, self.place.dim());
        let full = head_dim / LANES * LANES;
        let keys = self.place.keys();
        let slots = |key| plan::slots(self.blocks, params.block_size, chunk * CHUNK + key);
        let start = |slot| (slot * params.num_kv_heads + tile.kv_head) * head_dim;
        // A row is a few cache lines, and the next one is far away: the CPU does not foresee it.
        let mut ahead = slots(keys.start + PREFETCH_KEYS);
        for (key, slot) in keys.clone().zip(slots(keys.start)) {
            if key + PREFETCH_KEYS < keys.end
                && let Some(slot) = ahead.next()
            {
                prefetch::<L, T>(&self.cache[start(slot)..][..head_dim]);
            }
            let from = &self.cache[start(slot)..][..head_dim];
            let to = &mut self.panel[key * dim..][..dim];
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
}

/// Asks for all cache lines of `row`.
#[inline(always)]
fn prefetch<L: Lanes, T>(row: &[T]) {
    for line in row.chunks(CACHE_LINE_SIZE_BYTES / size_of::<T>()) {
        L::prefetch(line.as_ptr());
    }
}

/// Turns queries and keys into exponentials, their sums and the greatest scores.
struct Score<'a> {
    place: Place<'a>,
    scratch: &'a mut Scratch,
}

impl Operation for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let (dim, rows, keys) = (self.place.dim(), self.place.rows(), self.place.keys());
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
        for row in 0..rows {
            self.exponentials::<L>(row);
        }
    }
}

impl Score<'_> {
    /// Turns a row's products into exponentials relative to the greatest score.
    #[inline(always)]
    fn exponentials<L: Lanes>(&mut self, row: usize) {
        let (params, rows) = (self.place.params, self.place.rows());
        let keys = self.place.keys_of(row);
        if keys.is_empty() {
            self.scratch.partial[rows + row] = 0.0;
            return;
        }
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
}

/// Weighs the values in the panel by the exponentials.
struct Weigh<'a> {
    place: Place<'a>,
    scratch: &'a mut Scratch,
}

impl Operation for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let rows = self.place.rows();
        let size = partial_size(self.place.params, self.place.tile);
        self.scratch.partial[2 * rows..size].fill(0.0);
        let mut row = 0;
        while row < rows {
            row += match rows - row {
                1 => self.together::<L, 1>(row),
                2 => self.together::<L, 2>(row),
                3 => self.together::<L, 3>(row),
                _ => self.together::<L, 4>(row),
            };
        }
    }
}

impl Weigh<'_> {
    /// `R` rows from `row` on. Returns `R`.
    ///
    /// The rows go together through the keys that all of them see, alone through the others.
    #[inline(always)]
    fn together<L: Lanes, const R: usize>(&mut self, row: usize) -> usize {
        let place = self.place;
        let mut shared = place.keys_of(row);
        for r in 1..R {
            let keys = place.keys_of(row + r);
            shared = shared.start.max(keys.start)..shared.end.min(keys.end);
        }
        if shared.is_empty() {
            for r in 0..R {
                self.keys::<L, 1>(row + r, place.keys_of(row + r));
            }
            return R;
        }
        for r in 0..R {
            self.keys::<L, 1>(row + r, place.keys_of(row + r).start..shared.start);
        }
        self.keys::<L, R>(row, shared.clone());
        for r in 0..R {
            self.keys::<L, 1>(row + r, shared.end..place.keys_of(row + r).end);
        }
        R
    }

    /// Adds the weighted values of `keys` to `R` rows.
    #[inline(always)]
    fn keys<L: Lanes, const R: usize>(&mut self, row: usize, keys: Range<usize>) {
        if keys.is_empty() {
            return;
        }
        let (dim, rows) = (self.place.dim(), self.place.rows());
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
