//! The memory that weights and caches share.

use std::fs;

/// How much memory the daemon may take, and who has how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Memory of the device.
    pub total_bytes: u64,
    /// What the daemon may take of it.
    pub limit_bytes: u64,
}

/// Why a frontend gets no cache.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "no memory is left for a KV cache: {fraction:.3} of {total} is {share}, weights take {weights}, \
     other frontends hold {granted}{holders}; raise --gpu-memory-utilization or \
     VLLM_METAL_MEMORY_FRACTION, or stop another frontend",
    total = Bytes(*total_bytes), share = Bytes(*share_bytes), weights = Bytes(*weights_bytes),
    granted = Bytes(*granted_bytes), holders = Holders(holders)
)]
pub struct NoMemoryLeft {
    /// Share that the frontend asked for, bounded by the daemon's own.
    pub fraction: f64,
    /// Memory of the device.
    pub total_bytes: u64,
    /// `fraction` of it.
    pub share_bytes: u64,
    /// Weights of all models.
    pub weights_bytes: u64,
    /// Caches of other sessions.
    pub granted_bytes: u64,
    /// Names of those sessions.
    pub holders: Vec<String>,
}

/// The daemon takes as much memory as it may, and gives no more away: the system would swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the daemon takes {} of memory and its frontends may write {} more, of {} in all; stop a \
     frontend, or start metald with a larger VLLM_METAL_MEMORY_FRACTION",
    Bytes(*footprint_bytes), Bytes(*unwritten_bytes), Bytes(*limit_bytes)
)]
pub struct TooLarge {
    /// What its process takes.
    pub footprint_bytes: u64,
    /// What sessions were promised and have not written.
    pub unwritten_bytes: u64,
    /// What the daemon may take.
    pub limit_bytes: u64,
}

impl MemoryBudget {
    /// `fraction` (0 to 1) of this machine's memory, or of the control group's limit.
    ///
    /// # Errors
    /// If the operating system does not say how much there is.
    pub fn of_this_machine(fraction: f64) -> std::io::Result<Self> {
        let total_bytes = physical_memory()?.min(control_group_limit().unwrap_or(u64::MAX));
        Ok(Self::of(total_bytes, fraction))
    }

    /// `fraction` (0 to 1) of a device's memory.
    #[must_use]
    pub fn of(total_bytes: u64, fraction: f64) -> Self {
        Self {
            total_bytes,
            limit_bytes: share(total_bytes, fraction),
        }
    }

    /// What is left of the daemon's memory, as the system counts it: less than what grants leave, if
    /// the daemon takes more than it knows of.
    ///
    /// `unwritten_bytes` is what sessions were promised and have not written.
    ///
    /// # Errors
    /// [`TooLarge`] if nothing is left.
    pub fn left(&self, footprint_bytes: u64, unwritten_bytes: u64) -> Result<u64, TooLarge> {
        let left = self.limit_bytes.saturating_sub(footprint_bytes);
        match left.saturating_sub(unwritten_bytes) {
            0 => Err(TooLarge {
                footprint_bytes,
                unwritten_bytes,
                limit_bytes: self.limit_bytes,
            }),
            left => Ok(left),
        }
    }

    /// What a session may have for its cache, given what weights and others take.
    ///
    /// # Errors
    /// [`NoMemoryLeft`].
    pub fn available(
        &self,
        fraction: f64,
        weights_bytes: u64,
        others: &[(&str, u64)],
    ) -> Result<u64, NoMemoryLeft> {
        let share_bytes = share(self.total_bytes, fraction).min(self.limit_bytes);
        let granted_bytes = others.iter().map(|(_, bytes)| bytes).sum();
        match share_bytes
            .saturating_sub(weights_bytes)
            .saturating_sub(granted_bytes)
        {
            0 => Err(NoMemoryLeft {
                fraction,
                total_bytes: self.total_bytes,
                share_bytes,
                weights_bytes,
                granted_bytes,
                holders: others.iter().map(|(name, _)| (*name).to_owned()).collect(),
            }),
            available => Ok(available),
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of memory, to the nearest few kilobytes"
)]
fn share(total_bytes: u64, fraction: f64) -> u64 {
    (total_bytes as f64 * fraction.clamp(0.0, 1.0)) as u64
}

fn physical_memory() -> std::io::Result<u64> {
    use nix::unistd::{SysconfVar, sysconf};
    let page = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096);
    let pages = sysconf(SysconfVar::_PHYS_PAGES)?.unwrap_or(0);
    Ok(page.cast_unsigned() * pages.cast_unsigned())
}

/// Linux: the memory limit of our control group, if it has one.
fn control_group_limit() -> Option<u64> {
    fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Bytes for people.
struct Bytes(u64);

impl std::fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} GiB", self.0 as f64 / (1_u64 << 30) as f64)
    }
}

struct Holders<'a>(&'a [String]);

impl std::fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.0.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_share_is_what_weights_and_others_leave() {
        let budget = MemoryBudget {
            total_bytes: 100 * GIB,
            limit_bytes: 80 * GIB,
        };
        assert_eq!(budget.available(0.5, 10 * GIB, &[]), Ok(40 * GIB));
        assert_eq!(budget.available(1.0, 10 * GIB, &[]), Ok(70 * GIB));
        assert_eq!(
            budget.available(0.5, 10 * GIB, &[("a", 30 * GIB)]),
            Ok(10 * GIB)
        );
    }

    #[test]
    fn too_little_says_how_much_who_and_which_knob() {
        let budget = MemoryBudget {
            total_bytes: 100 * GIB,
            limit_bytes: 90 * GIB,
        };
        let error = budget.available(0.5, 10 * GIB, &[("chat", 30 * GIB), ("code", 10 * GIB)]);
        let message = error.expect_err("nothing is left").to_string();
        for part in [
            "0.500 of 100.00 GiB is 50.00 GiB",
            "10.00 GiB",
            "40.00 GiB (chat, code)",
            "--gpu-memory-utilization",
        ] {
            assert!(message.contains(part), "{part:?} is missing in {message:?}");
        }
    }

    #[test]
    fn what_the_system_counts_bounds_what_is_given_away() {
        let budget = MemoryBudget {
            total_bytes: 100 * GIB,
            limit_bytes: 80 * GIB,
        };
        assert_eq!(budget.left(20 * GIB, 30 * GIB), Ok(30 * GIB));
        for (footprint, unwritten) in [(80, 0), (90, 0), (50, 30), (50, 90)] {
            let error = budget.left(footprint * GIB, unwritten * GIB);
            let message = error.expect_err("nothing is left").to_string();
            assert!(
                message.contains(&format!("{footprint}.00 GiB")),
                "{message}"
            );
            assert!(message.contains("VLLM_METAL_MEMORY_FRACTION"), "{message}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        let budget = MemoryBudget::of_this_machine(0.9).expect("the system tells");
        assert!(budget.limit_bytes > 0);
        assert!(budget.limit_bytes < budget.total_bytes);
    }
}
