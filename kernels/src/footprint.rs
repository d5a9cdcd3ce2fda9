//! Memory of this process, as the system counts it.

use std::io;

/// Bytes that this process takes: its resident set.
///
/// # Errors
/// If the system does not say.
///
/// # Source
/// `man 5 proc_pid_status`: `VmRSS:      1234 kB`.
#[cfg(target_os = "linux")]
pub fn footprint_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.ok_or(io::ErrorKind::InvalidData)? << 10)
}

/// Bytes that this process takes: its physical footprint, which counts memory of the GPU and
/// compressed memory too. It is what Activity Monitor shows, and what the system acts upon.
///
/// # Errors
/// If the system does not say.
///
/// # Source
/// `proc_pid_rusage` in `<libproc.h>`.
#[cfg(target_os = "macos")]
pub fn footprint_bytes() -> io::Result<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage_info_v4>::zeroed();
    let pid = std::process::id().cast_signed();
    // JUSTIFICATION: neither the standard library nor a crate of this workspace has this call.
    // SAFETY: the kernel writes one `rusage_info_v4`, the flavour that is asked for, into memory
    // of that type, which stays in place; all zeros are a value of it.
    let usage = unsafe {
        if libc::proc_pid_rusage(pid, libc::RUSAGE_INFO_V4, usage.as_mut_ptr().cast()) != 0 {
            return Err(io::Error::last_os_error());
        }
        usage.assume_init()
    };
    Ok(usage.ri_phys_footprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_written_is_counted() {
        let before = footprint_bytes().expect("the system says");
        let written = std::hint::black_box(vec![1_u8; 256 << 20]);
        let with = footprint_bytes().expect("the system says");
        // Other tests of this process allocate and free meanwhile.
        assert!(
            with > before + (written.len() as u64) / 2,
            "{before} then {with}"
        );
    }
}
