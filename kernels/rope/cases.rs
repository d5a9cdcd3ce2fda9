//! Shapes of the rotary embedding.

/// Heads, and the part of them that turns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) num_tokens: usize,
    pub(crate) num_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) rotary_dim: usize,
    pub(crate) theta: f32,
    pub(crate) scale: f32,
}

/// Whole and partial rotation, a scaled one, and enough tokens to be shared by threads.
pub(crate) const CASES: [Case; 5] = [
    case(1, 9, 64, 64, 10_000.0, 1.0),
    case(3, 2, 80, 32, 10_000.0, 1.0),
    case(5, 1, 96, 96, 500_000.0, 1.19),
    case(2, 3, 6, 2, 10_000.0, 1.0),
    case(70, 8, 128, 128, 1_000_000.0, 1.0),
];

const fn case(
    num_tokens: usize,
    num_heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    theta: f32,
    scale: f32,
) -> Case {
    Case {
        num_tokens,
        num_heads,
        head_dim,
        rotary_dim,
        theta,
        scale,
    }
}
