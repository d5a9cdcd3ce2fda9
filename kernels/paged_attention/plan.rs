//! Which queries attend to which keys, and how that is cut into pieces. Pure.
//!
//! Keys are taken in chunks of [`CHUNK`] positions, counted from position 0 of the request. A
//! query's result is made of one partial result a chunk, merged in order, so how pieces are grouped
//! into tasks changes nothing.

use std::ops::Range;

use crate::node::View;

/// Keys of one chunk.
pub(super) const CHUNK: usize = 256;

/// Rows (queries times the query heads of one key head) of one tile: 48 * 256 scores are 48 KiB.
const TILE_ROWS: usize = 48;

/// The metadata of a batch, checked.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    pub(super) block_table: &'a [i32],
    query_start_loc: &'a [i32],
    seq_lens: &'a [i32],
}

/// One request of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) index: usize,
    pub(super) first_token: usize,
    pub(super) query_len: usize,
    pub(super) seq_len: usize,
}

/// Consecutive queries of one request, with all query heads of one key head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) request: usize,
    pub(super) kv_head: usize,
    /// Of the first query, in the batch.
    pub(super) first_token: usize,
    pub(super) num_tokens: usize,
    /// Of the first query, in its request.
    pub(super) first_position: usize,
}

fn size(value: i32, what: &str) -> usize {
    usize::try_from(value).unwrap_or_else(|_| panic!("{what} {value} is negative"))
}

impl<'a> Batch<'a> {
    /// Checks the metadata of `num_tokens` tokens against a cache of `num_blocks` blocks.
    pub(super) fn new(
        [block_table, query_start_loc, seq_lens]: [&'a View<'_>; 3],
        num_tokens: usize,
        (max_blocks, num_blocks, block_size): (usize, usize, usize),
    ) -> Self {
        let batch = Self {
            block_table: block_table.as_slice(),
            query_start_loc: query_start_loc.as_slice(),
            seq_lens: seq_lens.as_slice(),
        };
        assert!(
            batch.query_start_loc[0] == 0,
            "query_start_loc starts above 0"
        );
        for request in batch.requests() {
            let Request {
                index,
                first_token,
                query_len,
                seq_len,
            } = request;
            assert!(
                first_token + query_len <= num_tokens,
                "request {index} ends past the batch"
            );
            assert!(
                query_len <= seq_len,
                "request {index} has more queries than keys"
            );
            if query_len == 0 {
                continue;
            }
            let used = seq_len.div_ceil(block_size.max(1));
            assert!(
                used <= max_blocks,
                "request {index} needs {used} blocks of {max_blocks}"
            );
            for &block in &batch.block_table[index * max_blocks..][..used] {
                let in_range = usize::try_from(block).is_ok_and(|block| block < num_blocks);
                assert!(
                    in_range,
                    "request {index} names block {block} of {num_blocks}"
                );
            }
        }
        batch
    }

    /// The requests, in order.
    pub(super) fn requests(self) -> impl Iterator<Item = Request> + 'a {
        self.seq_lens
            .iter()
            .enumerate()
            .map(move |(index, &seq_len)| {
                let start = size(self.query_start_loc[index], "query_start_loc");
                let end = size(self.query_start_loc[index + 1], "query_start_loc");
                assert!(start <= end, "query_start_loc descends at request {index}");
                Request {
                    index,
                    first_token: start,
                    query_len: end - start,
                    seq_len: size(seq_len, "seq_len"),
                }
            })
    }

    /// Number of tokens that belong to a request.
    pub(super) fn num_tokens(self) -> usize {
        self.query_start_loc
            .last()
            .map_or(0, |&end| size(end, "query_start_loc"))
    }
}

/// Cuts a batch into tiles.
pub(super) fn tiles(batch: Batch<'_>, num_kv_heads: usize, group: usize, tiles: &mut Vec<Tile>) {
    tiles.clear();
    let tokens_per_tile = (TILE_ROWS / group).max(1);
    for request in batch.requests() {
        for start in (0..request.query_len).step_by(tokens_per_tile) {
            for kv_head in 0..num_kv_heads {
                tiles.push(Tile {
                    request: request.index,
                    kv_head,
                    first_token: request.first_token + start,
                    num_tokens: tokens_per_tile.min(request.query_len - start),
                    first_position: request.seq_len - request.query_len + start,
                });
            }
        }
    }
}

/// Slots of the keys from `position` on, as long as there are blocks.
#[inline]
pub(super) fn slots(
    blocks: &[i32],
    block_size: usize,
    position: usize,
) -> impl Iterator<Item = usize> {
    let mut blocks = blocks.iter().skip(position / block_size);
    let mut first = move || {
        let block = blocks.next()?;
        Some(usize::try_from(*block).expect("block ids were checked") * block_size)
    };
    let mut next = first().map(|slot| slot + position % block_size);
    let mut left = block_size - position % block_size;
    std::iter::from_fn(move || {
        let slot = next?;
        left -= 1;
        next = if left == 0 {
            left = block_size;
            first()
        } else {
            Some(slot + 1)
        };
        Some(slot)
    })
}

/// Positions of the keys that the query at `position` sees.
pub(super) fn visible(position: usize, sliding_window: Option<u32>) -> Range<usize> {
    let end = position + 1;
    let start = sliding_window.map_or(0, |window| end.saturating_sub(window as usize));
    start..end
}

impl Tile {
    /// Positions of the keys that any query of the tile sees.
    pub(super) fn keys(&self, sliding_window: Option<u32>) -> Range<usize> {
        let last = self.first_position + self.num_tokens - 1;
        visible(self.first_position, sliding_window).start..last + 1
    }

    /// The chunks that hold these keys.
    pub(super) fn chunks(&self, sliding_window: Option<u32>) -> Range<usize> {
        let keys = self.keys(sliding_window);
        keys.start / CHUNK..keys.end.div_ceil(CHUNK)
    }
}
