//! Shapes of the gate: `(rows, intermediate)`.

/// With and without a tail, less than one vector, and enough rows to be shared by threads.
pub(crate) const CASES: [(usize, usize); 5] = [(1, 1536), (1, 1), (3, 7), (4, 100), (40, 1536)];
