//! Writing rows by slot in a plain loop.

/// `cache[slot] = row` for every row whose slot is not negative.
pub(crate) fn write_rows<T: Copy>(rows: &[T], slots: &[i32], row: usize, cache: &mut [T]) {
    for (token, &slot) in slots.iter().enumerate() {
        if let Ok(slot) = usize::try_from(slot) {
            cache[slot * row..][..row].copy_from_slice(&rows[token * row..][..row]);
        }
    }
}
