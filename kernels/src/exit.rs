//! The end of a process that MLX must not hold up.

use std::ffi::c_int;

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
}

/// Ends the process with `code`, now: no destructor of any library runs.
///
/// MLX's wait for its streams, so a process whose device hangs would never end; and a model that
/// is still loading would use what they have taken down. Standard error is not buffered; whoever
/// has written to standard output has flushed it.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: it takes an integer and does not return.
    unsafe { _exit(c_int::from(code)) }
}
