//! A daemon for as long as a measurement takes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::BenchError;
use super::flags::DaemonFlags;
use crate::claim::Succession;
use crate::endpoint::{Endpoint, UnixEndpoint};
use crate::start;

/// A daemon of our own, ended when this is dropped.
#[derive(Debug)]
pub(super) struct OwnDaemon {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub(super) endpoint: Endpoint,
    /// From its start until it answered.
    pub(super) start_time: Duration,
}

impl OwnDaemon {
    /// Starts `metald serve` on a socket of its own.
    pub(super) fn start(flags: &DaemonFlags) -> Result<Self, BenchError> {
        Self::run(flags, &["serve"])
    }

    /// Starts `metald bench null`, whose steps take `step_us`, on a socket of its own.
    pub(super) fn start_null(flags: &DaemonFlags, step_us: u64) -> Result<Self, BenchError> {
        Self::run(flags, &["bench", "null", "--step-us", &step_us.to_string()])
    }

    /// A folder for as long as the daemon lives.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn run(flags: &DaemonFlags, subcommand: &[&str]) -> Result<Self, BenchError> {
        let folder = std::env::temp_dir().join(format!("metald-bench-{}", std::process::id()));
        let socket = UnixEndpoint::at(folder.join("metald.sock"))?;
        // The daemon would make the folder itself, but its log is opened before.
        drop(Succession::announce(&socket)?);
        let endpoint = Endpoint::Unix(socket);
        let log = folder.join("metald.log");
        let started = Instant::now();
        let child = start::daemon(&endpoint, &log, |command: &mut Command| {
            command
                .args(subcommand)
                .arg("--device")
                .arg(&flags.device)
                .arg("--memory-fraction")
                .arg(flags.memory_fraction.to_string())
                .env_remove("METAL_RPC_MODEL_ROOTS");
        })?;
        Ok(Self {
            child,
            folder,
            endpoint,
            start_time: started.elapsed(),
        })
    }

    /// Memory that it has in use, as `ps` counts it.
    pub(super) fn resident_bytes(&self) -> Result<u64, BenchError> {
        let io = |error| BenchError::Io {
            path: PathBuf::from("ps"),
            error,
        };
        let pid = self.child.id().to_string();
        let output = Command::new("ps")
            .args(["-o", "rss=", "-p", &pid])
            .output()
            .map_err(io)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let kib: u64 = text
            .trim()
            .parse()
            .map_err(|_| io(std::io::Error::other("it does not know the daemon")))?;
        Ok(kib << 10)
    }
}

impl Drop for OwnDaemon {
    fn drop(&mut self) {
        // It holds nothing that has to be written; what cannot be ended has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
