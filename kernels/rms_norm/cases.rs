//! Shapes of the normalisation: `(rows, dim)`.

/// With and without a tail, less than one vector, and enough rows to be shared by threads.
pub(crate) const CASES: [(usize, usize); 7] = [
    (1, 576),
    (1, 1),
    (3, 7),
    (2, 64),
    (5, 100),
    (33, 576),
    (150, 1025),
];
