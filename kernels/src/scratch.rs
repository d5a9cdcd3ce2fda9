//! Memory that a kernel computes in, kept by its thread from one call to the next.

/// Makes `buffer` at least `len` long; new elements are zero.
///
/// # Panics
/// If there is no memory: an error of whoever waits for the kernel's result, where a vector that grows
/// by itself would end the process. The words are those that `is_out_of_memory` looks for.
pub(crate) fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    let Some(more @ 1..) = len.checked_sub(buffer.len()) else {
        return;
    };
    let size_bytes = len.saturating_mul(size_of::<T>());
    assert!(
        buffer.try_reserve(more).is_ok(),
        "Unable to allocate {size_bytes} bytes to compute in"
    );
    buffer.resize(len, T::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_only_grows() {
        let mut buffer = vec![1_u8; 3];
        grow(&mut buffer, 2);
        assert_eq!(buffer, [1, 1, 1]);
        grow(&mut buffer, 5);
        assert_eq!(buffer, [1, 1, 1, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "Unable to allocate 9223372036854775800 bytes")]
    fn memory_that_is_not_there_does_not_end_the_process() {
        grow(&mut Vec::<u64>::new(), isize::MAX.unsigned_abs() / 8);
    }
}
