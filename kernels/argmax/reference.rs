//! Argmax in a plain loop.

/// Index of the first greatest value; NaN is greater than all.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in row.iter().enumerate() {
        if !row[best].is_nan() && (value.is_nan() || value > row[best]) {
            best = i;
        }
    }
    best
}
