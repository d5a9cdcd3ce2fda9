//! From projections to queries and the paged cache on a GPU.

use mlx_rs::Array;

use super::{QkvParams, native::RopeAndCache};
use crate::{
    element::FloatType,
    error::Result,
    ffi::Output,
    gpu::{Launch, Scalar, dialect_source, groups_of, int, word},
    rope::RopePairing,
};

/// Rows of 32 threads of a threadgroup.
const ROWS: i32 = 4;

/// Heads that a row of threads does: several where there is more than enough to do, because angles
/// take longer than heads.
fn heads_of_row(num_tokens: i32) -> (&'static str, i32) {
    match num_tokens {
        0..256 => ("1", 1),
        _ => ("4", 4),
    }
}

/// What goes into the kernel, as the safe face has checked it.
pub(super) struct Inputs<'a> {
    pub(super) qkv: &'a Array,
    pub(super) x_type: FloatType,
    pub(super) positions: &'a Array,
    pub(super) slot_mapping: &'a Array,
    pub(super) caches: [&'a Array; 2],
}

/// The queries and the caches.
pub(super) fn rope_and_cache(
    inputs: &Inputs<'_>,
    params: &QkvParams,
    node: RopeAndCache,
) -> Result<[Array; 3]> {
    let Inputs {
        qkv,
        x_type,
        positions,
        slot_mapping,
        caches: [key_cache, value_cache],
    } = *inputs;
    // What is absent is not read, but every parameter of a kernel needs an array.
    let inv_freq = params
        .rope
        .as_ref()
        .map_or(positions, |rope| &rope.inv_freq);
    let (query_norm, key_norm) = match &params.norm {
        Some(norm) => (&norm.query, &norm.key),
        None => (qkv, qkv),
    };
    let (norm_type, eps) = node.norm.unwrap_or((node.cache, 0.0));
    let (each, heads) = heads_of_row(qkv.dim(0));
    let launch = Launch {
        kernel: "rope_and_cache",
        sources: &[SOURCE],
        words: &[
            ("X", word(x_type)),
            ("W", word(norm_type)),
            ("C", word(node.cache)),
            ("EACH", each),
        ],
        scalars: &scalars(&node, params, eps),
        groups: [
            groups_of(int(node.num_heads + 2 * node.num_kv_heads), ROWS * heads),
            qkv.dim(0),
            1,
        ],
        threads: ROWS * 32,
    };
    let shape = [qkv.dim(0), params.num_heads, int(node.head_dim)];
    launch.add(
        &[
            qkv,
            positions,
            slot_mapping,
            inv_freq,
            query_norm,
            key_norm,
            key_cache,
            value_cache,
        ],
        [
            Output::Fresh {
                shape: &shape,
                dtype: qkv.dtype(),
            },
            Output::InPlace { input: 6 },
            Output::InPlace { input: 7 },
        ],
    )
}

const SOURCE: &std::ffi::CStr = dialect_source!("kernel.kh");

fn scalars(node: &RopeAndCache, params: &QkvParams, eps: f32) -> [Scalar; 9] {
    let num_pairs = params.rope.as_ref().map_or(0, |rope| rope.inv_freq.dim(0));
    let (scale, pairing) = node.rope.unwrap_or((1.0, RopePairing::Halves));
    [
        int(node.num_heads).into(),
        int(node.num_kv_heads).into(),
        int(node.head_dim).into(),
        int(node.num_slots).into(),
        num_pairs.into(),
        i32::from(pairing == RopePairing::Interleaved).into(),
        scale.into(),
        i32::from(node.norm.is_some()).into(),
        eps.into(),
    ]
}

/// The rotary embedding alone: queries without keys and values.
///
/// `x` `[num_tokens, num_heads, head_dim]`, `positions` `[num_tokens]`, `inv_freq`
/// `[rotary_dim / 2]` -> like `x`.
pub(crate) fn rope(
    [x, positions, inv_freq]: [&Array; 3],
    x_type: FloatType,
    scale: f32,
    pairing: RopePairing,
) -> Result<Array> {
    let (num_heads, head_dim) = (x.dim(1), x.dim(2));
    let interleaved = i32::from(pairing == RopePairing::Interleaved);
    let x_word = word(x_type);
    let (each, heads) = heads_of_row(x.dim(0));
    let launch = Launch {
        kernel: "rope_and_cache",
        sources: &[SOURCE],
        words: &[("X", x_word), ("W", x_word), ("C", x_word), ("EACH", each)],
        scalars: &[
            num_heads.into(),
            0.into(),
            head_dim.into(),
            0.into(),
            inv_freq.dim(0).into(),
            interleaved.into(),
            scale.into(),
            0.into(),
            0.0.into(),
        ],
        groups: [groups_of(num_heads, ROWS * heads), x.dim(0), 1],
        threads: ROWS * 32,
    };
    let output = Output::Fresh {
        shape: x.shape(),
        dtype: x.dtype(),
    };
    let [turned] = launch.add(&[x, positions, positions, inv_freq, x, x, x, x], [output])?;
    Ok(turned)
}
