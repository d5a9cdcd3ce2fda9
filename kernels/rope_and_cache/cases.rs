//! Layers and batches of the way from projections to queries and cache.

/// A layer, and how many tokens go through it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) num_tokens: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// 0 for heads that are not turned.
    pub(crate) rotary_dim: usize,
    pub(crate) interleaved: bool,
    pub(crate) norm: bool,
}

const LLAMA: Case = Case {
    num_tokens: 1,
    num_heads: 9,
    num_kv_heads: 3,
    head_dim: 64,
    rotary_dim: 64,
    interleaved: false,
    norm: false,
};

/// With and without norm, whole, partial and no rotation, one head, heads that are no whole vectors,
/// and enough tokens to be shared by threads.
pub(crate) const CASES: [Case; 7] = [
    LLAMA,
    Case {
        norm: true,
        num_tokens: 3,
        ..LLAMA
    },
    Case {
        rotary_dim: 0,
        ..LLAMA
    },
    Case {
        rotary_dim: 0,
        norm: true,
        ..LLAMA
    },
    Case {
        num_tokens: 5,
        num_heads: 4,
        head_dim: 20,
        num_kv_heads: 1,
        rotary_dim: 12,
        interleaved: true,
        norm: true,
    },
    Case {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 6,
        rotary_dim: 4,
        ..LLAMA
    },
    Case {
        num_tokens: 90,
        norm: true,
        ..LLAMA
    },
];
