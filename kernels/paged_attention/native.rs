//! Attention over the paged cache on the CPU.
//!
//! A task takes one tile of queries through its chunks of keys. Where there are fewer tiles than
//! threads (one long request, decoding), a task takes some chunks of a tile instead and leaves its
//! partial results to a second pass that merges them. Both ways compute the same partial results
//! and merge them in the same order with the same function.

use std::{cell::RefCell, ffi::CStr};

use super::{
    attend::attend,
    chunk::{self, Scratch},
    plan::{self, Batch, Tile},
};
use crate::{
    element::{Float, FloatType, with_float_type},
    node::{HostKernel, View},
    pool::{self, Shared},
    scratch::grow,
};

/// Tiles a thread should have before chunks are dealt out one by one.
const MIN_TILES_PER_THREAD: usize = 4;

/// `query`, `key_cache`, `value_cache`, `block_table`, `query_start_loc`, `seq_lens`, and `sinks` if
/// there are some -> like `query`.
#[derive(Clone, Copy)]
pub(super) struct PagedAttention {
    pub(super) num_heads: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    pub(super) num_blocks: usize,
    pub(super) max_blocks: usize,
    pub(super) cache: FloatType,
    pub(super) scale: f32,
    pub(super) sliding_window: Option<u32>,
    pub(super) soft_cap: Option<f32>,
    pub(super) has_sinks: bool,
}

/// What one call of the kernel works on.
pub(super) struct Call<'a, T> {
    pub(super) params: &'a PagedAttention,
    pub(super) query: &'a [f32],
    pub(super) key_cache: &'a [T],
    pub(super) value_cache: &'a [T],
    pub(super) batch: Batch<'a>,
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) out: Shared<f32>,
}

thread_local! {
    static TILES: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
    static PARTIALS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl HostKernel for PagedAttention {
    const NAME: &'static CStr = c"paged_attention";

    fn run(&self, inputs: &[View<'_>], outputs: &mut [View<'_>]) {
        let query = inputs[0].as_slice::<f32>();
        let out = outputs[0].as_mut_slice::<f32>();
        assert!(query.len() == out.len());
        let row = self.num_heads * self.head_dim;
        if row == 0 {
            return;
        }
        let batch = Batch::new(
            [&inputs[3], &inputs[4], &inputs[5]],
            query.len() / row,
            (self.max_blocks, self.num_blocks, self.block_size),
        );
        out[batch.num_tokens() * row..].fill(0.0);
        with_float_type!(self.cache, T => {
            let call = Call::<T> {
                params: self,
                query,
                key_cache: inputs[1].as_slice(),
                value_cache: inputs[2].as_slice(),
                batch,
                sinks: self.has_sinks.then(|| inputs[6].as_slice()),
                out: Shared::new(out),
            };
            let num_slots = self.num_blocks * self.block_size;
            assert!(call.key_cache.len() == num_slots * self.num_kv_heads * self.head_dim);
            assert!(call.value_cache.len() == call.key_cache.len());
            call.run();
        });
    }
}

impl PagedAttention {
    /// Query heads that share a key head.
    pub(super) fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Multiply-adds of a tile.
    fn work(&self, tile: &Tile) -> usize {
        let rows = tile.num_tokens * self.group();
        2 * rows * self.head_dim * tile.keys(self.sliding_window).len()
    }
}

impl<T: Float> Call<'_, T> {
    fn run(&self) {
        TILES.with_borrow_mut(|tiles| {
            plan::tiles(
                self.batch,
                self.params.num_kv_heads,
                self.params.group(),
                tiles,
            );
            let work = tiles.iter().map(|tile| self.params.work(tile)).sum();
            let num_threads = pool::num_threads();
            if num_threads == 1 || tiles.len() >= MIN_TILES_PER_THREAD * num_threads {
                self.by_tile(tiles, work);
            } else {
                self.by_chunk(tiles, work);
            }
        });
    }

    fn by_tile(&self, tiles: &[Tile], work: usize) {
        pool::for_each(tiles.len(), work, |index| {
            let tile = &tiles[index];
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.begin(self, tile);
                for chunk in tile.chunks(self.params.sliding_window) {
                    attend(self, tile, chunk, scratch);
                    scratch.merge_own(self.params, tile);
                }
                scratch.finish(self, tile);
            });
        });
    }

    /// Deals out single chunks, then merges.
    fn by_chunk(&self, tiles: &[Tile], work: usize) {
        let window = self.params.sliding_window;
        let num_chunks: usize = tiles.iter().map(|tile| tile.chunks(window).len()).sum();
        // Where a chunk's partial results begin, for every tile.
        let size = |tile: &Tile| chunk::partial_size(self.params, tile);
        let start = |index: usize| -> usize {
            let before = tiles[..index].iter();
            before
                .map(|tile| tile.chunks(window).len() * size(tile))
                .sum()
        };
        let find = |mut nth: usize| {
            for (index, tile) in tiles.iter().enumerate() {
                let chunks = tile.chunks(window);
                if nth < chunks.len() {
                    return (index, tile, nth, chunks.start + nth);
                }
                nth -= chunks.len();
            }
            unreachable!("there are num_chunks chunks")
        };
        PARTIALS.with_borrow_mut(|partials| {
            let total = start(tiles.len());
            grow(partials, total);
            let partials = Shared::new(partials);
            pool::for_each(num_chunks, work, |task| {
                let (index, tile, nth, chunk) = find(task);
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch.begin(self, tile);
                    attend(self, tile, chunk, scratch);
                    let size = size(tile);
                    // SAFETY: one task a chunk of a tile.
                    let part = unsafe { partials.part(start(index) + nth * size, size) };
                    part.copy_from_slice(scratch.partial(size));
                });
            });
            pool::for_each(tiles.len(), total, |index| {
                let tile = &tiles[index];
                let size = size(tile);
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch.begin(self, tile);
                    for nth in 0..tile.chunks(window).len() {
                        // SAFETY: the first pass is over, and one task merges a tile.
                        let part = unsafe { partials.part(start(index) + nth * size, size) };
                        scratch.merge(self.params, tile, part);
                    }
                    scratch.finish(self, tile);
                });
            });
        });
    }
}
