//! Shapes of dispatch: `(tokens, experts, experts per token, dim)`.

/// One token, many experts without a row, all experts, tails, and enough to be shared by threads.
pub(crate) const SHAPES: [(usize, usize, usize, usize); 6] = [
    (1, 8, 2, 64),
    (3, 128, 8, 20),
    (9, 4, 4, 7),
    (5, 1, 1, 3),
    (70, 6, 2, 1030),
    (300, 32, 4, 100),
];
