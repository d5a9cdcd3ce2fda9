//! Shapes of the addition and normalisation: `(rows, dim)`.

/// With and without a tail, less than one vector, and enough rows to be shared by threads.
pub(crate) const CASES: [(usize, usize); 5] = [(1, 576), (3, 7), (1, 1), (5, 100), (90, 1025)];
