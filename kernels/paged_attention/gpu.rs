//! Attention over the paged cache on a GPU: by tiles of queries where requests have several of them,
//! else with CUDA by the groups of heads of single queries if there are many, else by pieces of the
//! context, each a threadgroup, and their merging.

use mlx_rs::{Array, Dtype};

use super::{AttentionMetadata, AttentionParams, native::PagedAttention};
use crate::{
    element::FloatType,
    error::{KernelError, Result},
    ffi::Output,
    gpu::{Launch, Scalar, dialect_source, groups_of, int, word},
};

/// Fewest keys of a piece: a shorter one is not worth its merging.
const MIN_PIECE: i32 = 64;

/// Pieces end at multiples of this, the keys that a threadgroup takes at once.
const PIECE_STEP: i32 = 64;

/// Threadgroups that keep a large GPU busy.
const ENOUGH_GROUPS: i32 = 512;

/// Fewest groups of heads, one for each token and key head, that keep a large GPU busy without pieces.
const ENOUGH_FOR_GROUPS: i32 = 256;

/// Head sizes are compiled in steps of this.
const CHUNK: i32 = 64;

const THREADS: i32 = 128;

const REQUEST: &std::ffi::CStr = dialect_source!("request.kh");

/// What goes into the kernel, as the safe face has checked it.
pub(super) struct Inputs<'a> {
    pub(super) query: &'a Array,
    pub(super) x_type: FloatType,
    pub(super) caches: [&'a Array; 2],
    pub(super) metadata: &'a AttentionMetadata,
}

/// The attention, like the query.
pub(super) fn paged_attention(
    inputs: &Inputs<'_>,
    params: &AttentionParams,
    node: PagedAttention,
) -> Result<Array> {
    let head_dim = int(node.head_dim);
    let Some(chunks) = ["1", "2", "4"]
        .into_iter()
        .zip([1, 2, 4])
        .find(|(_, chunks)| head_dim <= chunks * CHUNK)
    else {
        return Err(KernelError::Value {
            kernel: "paged_attention",
            argument: "head_dim",
            rule: "at most 256 on a GPU",
        });
    };
    if tiles_pay(inputs, &node) {
        return tiles(inputs, params, &node, chunks.0);
    }
    if group_pays(inputs, &node) {
        return group(inputs, params, &node, chunks.0);
    }
    let heads = Heads::new(&node, chunks.1);
    let pieces = Pieces::new(&node, inputs.query.dim(0) * heads.groups);
    let (out, partial) = rows(inputs, params, &node, (chunks.0, heads, pieces))?;
    if pieces.count == 1 {
        return Ok(out);
    }
    merge(inputs, params, &node, &partial, pieces.count)
}

/// How the heads of a key head are shared out.
#[derive(Clone, Copy)]
struct Heads {
    /// Of a threadgroup.
    word: &'static str,
    /// Threadgroups for one piece of one token.
    groups: i32,
}

impl Heads {
    fn new(node: &PagedAttention, chunks: i32) -> Self {
        let group = int(node.num_heads / node.num_kv_heads);
        // More would not fit the registers.
        let (word, heads) = match group {
            1 => ("1", 1),
            _ if chunks == 4 || group == 2 => ("2", 2),
            _ => ("4", 4),
        };
        Self {
            word,
            groups: int(node.num_kv_heads) * groups_of(group, heads),
        }
    }
}

/// How contexts are cut: the less, the more threadgroups there are without it.
#[derive(Clone, Copy)]
struct Pieces {
    count: i32,
    len: i32,
}

impl Pieces {
    fn new(node: &PagedAttention, groups: i32) -> Self {
        let longest = int(node.max_blocks * node.block_size).max(1);
        let wanted = groups_of(ENOUGH_GROUPS, groups.max(1));
        let count = wanted.clamp(1, groups_of(longest, MIN_PIECE));
        let len = groups_of(groups_of(longest, count), PIECE_STEP) * PIECE_STEP;
        Self {
            count: groups_of(longest, len),
            len,
        }
    }
}

/// The arrays that both ways of attending read. What is absent is not read, but needs an array.
fn arrays<'a>(inputs: &Inputs<'a>, params: &'a AttentionParams) -> [&'a Array; 7] {
    let AttentionMetadata {
        block_table,
        query_start_loc,
        seq_lens,
    } = inputs.metadata;
    [
        inputs.query,
        inputs.caches[0],
        inputs.caches[1],
        block_table,
        query_start_loc,
        seq_lens,
        params.sinks.as_ref().unwrap_or(seq_lens),
    ]
}

/// Rows of a tile: `ROWS` in tiles.kh.
const TILE: i32 = 64;

/// Whether the matrix units take the types and sizes.
fn takes_matrices(inputs: &Inputs<'_>, node: &PagedAttention) -> bool {
    inputs.x_type != FloatType::F32
        && inputs.x_type == node.cache
        && node.head_dim.is_multiple_of(8)
}

/// Whether requests have several queries on average, and the matrix units take them.
fn tiles_pay(inputs: &Inputs<'_>, node: &PagedAttention) -> bool {
    let num_reqs = inputs.metadata.seq_lens.dim(0);
    inputs.query.dim(0) >= 2 * num_reqs.max(1)
        && takes_matrices(inputs, node)
        && int(node.num_heads / node.num_kv_heads) <= TILE
}

/// The attention by tiles of queries.
fn tiles(
    inputs: &Inputs<'_>,
    params: &AttentionParams,
    node: &PagedAttention,
    chunks: &'static str,
) -> Result<Array> {
    let query = inputs.query;
    let (num_tokens, num_reqs) = (query.dim(0), inputs.metadata.seq_lens.dim(0));
    let tokens_of_tile = TILE / int(node.num_heads / node.num_kv_heads);
    let shape = shape_scalars(inputs.metadata, node);
    let constants = [&[num_tokens.into()], &shape[..], &rule_scalars(node)].concat();
    let launch = Launch {
        kernel: "attention_tiles",
        sources: &[REQUEST, dialect_source!("tiles.kh")],
        words: &[("X", word(inputs.x_type)), ("CHUNKS", chunks)],
        scalars: &constants,
        groups: [
            num_tokens / tokens_of_tile + num_reqs.max(1),
            int(node.num_kv_heads),
            1,
        ],
        threads: THREADS,
    };
    let output = Output::Fresh {
        shape: query.shape(),
        dtype: query.dtype(),
    };
    let [out] = launch.add(&arrays(inputs, params), [output])?;
    Ok(out)
}

/// Heads of a threadgroup: `GROUP_HEADS` in group.kh.
const GROUP: i32 = 8;

/// Whether single tokens are enough to attend by groups of heads, whole contexts each, and the
/// matrix units take them. Only CUDA has threadgroup memory enough for what is asked for ahead.
fn group_pays(inputs: &Inputs<'_>, node: &PagedAttention) -> bool {
    !cfg!(target_os = "macos")
        && takes_matrices(inputs, node)
        && int(node.head_dim) <= 2 * CHUNK
        && inputs.query.dim(0) * int(node.num_kv_heads) >= ENOUGH_FOR_GROUPS
}

/// The attention by groups of heads.
fn group(
    inputs: &Inputs<'_>,
    params: &AttentionParams,
    node: &PagedAttention,
    chunks: &'static str,
) -> Result<Array> {
    let query = inputs.query;
    let parts = groups_of(int(node.num_heads / node.num_kv_heads), GROUP);
    let constants = [
        &shape_scalars(inputs.metadata, node)[..],
        &rule_scalars(node),
    ]
    .concat();
    let launch = Launch {
        kernel: "attention_group",
        sources: &[REQUEST, dialect_source!("group.kh")],
        words: &[("X", word(inputs.x_type)), ("CHUNKS", chunks)],
        scalars: &constants,
        groups: [int(node.num_kv_heads) * parts, query.dim(0), 1],
        threads: 64,
    };
    let output = Output::Fresh {
        shape: query.shape(),
        dtype: query.dtype(),
    };
    let [out] = launch.add(&arrays(inputs, params), [output])?;
    Ok(out)
}

/// The attention if there is one piece, and the pieces if there are more.
fn rows(
    inputs: &Inputs<'_>,
    params: &AttentionParams,
    node: &PagedAttention,
    (chunks, heads, pieces): (&'static str, Heads, Pieces),
) -> Result<(Array, Array)> {
    let query = inputs.query;
    let shape = shape_scalars(inputs.metadata, node);
    let count = [pieces.count.into()];
    let constants = [
        &shape[..],
        &count,
        &rule_scalars(node),
        &[pieces.len.into()],
    ]
    .concat();
    let launch = Launch {
        kernel: "attention_rows",
        sources: &[REQUEST, dialect_source!("rows.kh")],
        words: &[
            ("X", word(inputs.x_type)),
            ("C", word(node.cache)),
            ("CHUNKS", chunks),
            ("HEADS", heads.word),
            (
                "WHOLE",
                if node.head_dim.is_multiple_of(8) {
                    "1"
                } else {
                    "0"
                },
            ),
        ],
        scalars: &constants,
        groups: [pieces.count, heads.groups, query.dim(0)],
        threads: THREADS,
    };
    // One of the two stays empty, but every parameter of a kernel needs an array.
    let is_whole = pieces.count == 1;
    let width = query.dim(0) * int(node.num_heads) * pieces.count;
    let pieces_shape = [if is_whole { 1 } else { width }, int(node.head_dim) + 2];
    let out_shape = if is_whole { query.shape() } else { &[1] };
    let [out, partial] = launch.add(
        &arrays(inputs, params),
        [
            Output::Fresh {
                shape: out_shape,
                dtype: query.dtype(),
            },
            Output::Fresh {
                shape: &pieces_shape,
                dtype: Dtype::Float32,
            },
        ],
    )?;
    Ok((out, partial))
}

/// What the arrays look like.
fn shape_scalars(metadata: &AttentionMetadata, node: &PagedAttention) -> [Scalar; 7] {
    [
        metadata.seq_lens.dim(0).into(),
        int(node.max_blocks).into(),
        int(node.num_blocks).into(),
        int(node.block_size).into(),
        int(node.num_heads).into(),
        int(node.num_kv_heads).into(),
        int(node.head_dim).into(),
    ]
}

/// How the layer attends.
fn rule_scalars(node: &PagedAttention) -> [Scalar; 4] {
    let window = node.sliding_window.unwrap_or(0);
    [
        i32::try_from(window).unwrap_or(i32::MAX).into(),
        node.scale.into(),
        node.soft_cap.unwrap_or(0.0).into(),
        i32::from(node.has_sinks).into(),
    ]
}

/// The attention from its pieces.
fn merge(
    inputs: &Inputs<'_>,
    params: &AttentionParams,
    node: &PagedAttention,
    partial: &Array,
    num_pieces: i32,
) -> Result<Array> {
    let query = inputs.query;
    let launch = Launch {
        kernel: "attention_merge",
        sources: &[REQUEST, dialect_source!("merge.kh")],
        words: &[("X", word(inputs.x_type))],
        scalars: &[
            int(node.num_heads).into(),
            int(node.head_dim).into(),
            num_pieces.into(),
            i32::from(node.has_sinks).into(),
        ],
        groups: [int(node.num_heads), query.dim(0), 1],
        threads: THREADS,
    };
    let sinks = params.sinks.as_ref().unwrap_or(partial);
    let output = Output::Fresh {
        shape: query.shape(),
        dtype: query.dtype(),
    };
    let [out] = launch.add(&[partial, sinks], [output])?;
    Ok(out)
}
