//! Whether the matrix unit can be used: announced, permitted, and tried.
//!
//! A hypervisor may announce what it does not let happen, and then a process that uses the unit is
//! ended. So a child process multiplies first: what happens to it happens to nobody else.

#[cfg(target_os = "linux")]
pub(super) fn is_usable() -> bool {
    has_instructions() && is_permitted() && survives(|| multiplies() && multiplies_bytes())
}

/// Only Linux is known to save the registers when it is asked to.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_usable() -> bool {
    false
}

/// AMX with bf16 and bytes, and the AVX-512 that goes with it.
#[cfg(target_os = "linux")]
fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    leaf.edx & AMX_BF16 != 0
        && leaf.edx & AMX_TILE != 0
        && leaf.edx & AMX_INT8 != 0
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bf16")
        && std::is_x86_feature_detected!("avx512vnni")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c")
}

/// Linux saves tile registers only for processes that have asked for it.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: changes nothing but what the process may use.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// How long a child may take.
#[cfg(target_os = "linux")]
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether a child process that runs `attempt` gets through it, and it is true.
///
/// `attempt` neither allocates nor locks: the child has this thread alone, and what others held.
#[cfg(target_os = "linux")]
fn survives(attempt: fn() -> bool) -> bool {
    use std::time::Instant;

    // SAFETY: the child calls what a child of a process with threads may, and ends without
    // returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let no_core = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: as above; the limit is the child's own.
        unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
            // A panic must not go on into what the parent was called by.
            let is_right = std::panic::catch_unwind(attempt).unwrap_or(false);
            libc::_exit(i32::from(!is_right));
        }
    }
    if child < 0 {
        return false;
    }
    let (start, mut status) = (Instant::now(), 0);
    loop {
        // SAFETY: waits for this child alone.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if ended != 0 {
            return ended == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
        }
        if start.elapsed() > PATIENCE {
            // SAFETY: the child was not waited for yet, so the number is still its own.
            unsafe {
                libc::kill(child, libc::SIGKILL);
                libc::waitpid(child, &raw mut status, 0);
            }
            return false;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}

/// Multiplies two tiles of weights with one of columns, and says whether the sums are right.
#[cfg(target_os = "linux")]
fn multiplies() -> bool {
    use half::bf16;

    use super::{COLUMNS, INPUTS, OUTPUTS, Operands, PAIR, TILE_SIZE_BYTES, Unit};

    /// Small whole numbers: exact in every format.
    fn number(index: usize) -> f32 {
        f32::from(u8::try_from(index + 1).expect("a tile has sixteen rows"))
    }
    let mut weights = [[[0_u16; INPUTS]; OUTPUTS]; PAIR];
    for tile in &mut weights {
        for (output, row) in tile.iter_mut().enumerate() {
            row.fill(bf16::from_f32(number(output)).to_bits());
        }
    }
    let mut x = [[[0_u16; 2]; COLUMNS]; INPUTS / 2];
    for pairs in &mut x {
        for (column, pair) in pairs.iter_mut().enumerate() {
            pair.fill(bf16::from_f32(number(column)).to_bits());
        }
    }
    let mut sums = [[[0_f32; COLUMNS]; OUTPUTS]; PAIR];
    let operands = Operands {
        weights: [weights[0].as_ptr().cast(), weights[1].as_ptr().cast()],
        row_size_bytes: INPUTS * size_of::<u16>(),
        step_size_bytes: TILE_SIZE_BYTES,
        x: x.as_ptr().cast(),
        steps: 1,
        next: weights.as_ptr().cast(),
        next_step_size_bytes: 0,
    };
    // SAFETY: announced and permitted; if the instructions do not work after all, only this child
    // ends. The operands are as they are described, and `sums` has two tiles.
    unsafe { Unit::new(COLUMNS).one(&operands, sums.as_mut_ptr().cast()) };
    sums.iter().all(|tile| {
        (0..OUTPUTS).all(|output| {
            let product = |column| 32.0 * number(output) * number(column);
            (0..COLUMNS).all(|column| tile[output][column] == product(column))
        })
    })
}

/// As [`multiplies`], with bytes.
#[cfg(target_os = "linux")]
fn multiplies_bytes() -> bool {
    use super::{ByteOperands, ByteUnit, COLUMNS, OUTPUTS};

    const INPUTS: usize = 64;
    let (mut weights, mut x) = (
        [[0_u8; INPUTS]; OUTPUTS],
        [[[[0_i8; 4]; COLUMNS]; INPUTS / 4]; 2],
    );
    for (row, value) in weights.iter_mut().zip(240..=255) {
        row.fill(value);
    }
    for (tile, sign) in x.iter_mut().zip([-1, 1]) {
        for columns in tile {
            for (four, value) in columns.iter_mut().zip(100..) {
                four.fill(sign * value);
            }
        }
    }
    let mut sums = [[[0_i32; COLUMNS]; OUTPUTS]; 2];
    let operands = ByteOperands {
        weights: weights.as_ptr().cast(),
        row_size_bytes: INPUTS,
        x: [x[0].as_ptr().cast(), x[1].as_ptr().cast()],
        steps: 1,
    };
    // SAFETY: as in `multiplies`; `sums` has two tiles.
    unsafe {
        let unit = ByteUnit::new(COLUMNS, INPUTS);
        unit.multiply(&operands);
        unit.store(sums.as_mut_ptr().cast());
    }
    sums.iter().zip([-64, 64]).all(|(tile, factor)| {
        tile.iter().zip(240..).all(|(row, weight)| {
            row.iter()
                .zip(100..)
                .all(|(&sum, value)| sum == factor * weight * value)
        })
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn both_attempts_have_the_same_answer() {
        if has_instructions() && is_permitted() {
            assert_eq!(survives(multiplies), survives(multiplies_bytes));
        }
    }

    #[test]
    fn a_child_that_is_ended_or_wrong_says_no() {
        assert!(survives(|| true));
        assert!(!survives(|| false));
        assert!(!survives(|| panic!("as a bug of the attempt would")));
        // SAFETY: ends the child, as a machine without the unit would.
        assert!(!survives(|| unsafe {
            std::arch::asm!("ud2", options(noreturn))
        }));
        // SAFETY: the child's own number.
        assert!(!survives(|| unsafe { libc::raise(libc::SIGKILL) } == 0));
    }
}
