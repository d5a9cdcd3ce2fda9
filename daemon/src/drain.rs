//! `metald drain`: has a daemon finish its steps, send its frontends to the next one, and end.
//!
//! It is SIGTERM, so only the daemon's own user can do it, on the daemon's own machine; and it works
//! with a daemon of any version.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::claim;
use crate::config::DrainFlags;
use crate::endpoint::{EndpointError, UnixEndpoint};
use crate::limits::HANDOVER_MS;
use crate::socket::{self, SocketError};

/// How often the daemon is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Why the daemon has not ended.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The signal cannot be sent, or nobody reads the output.
    #[error("cannot stop metald (pid {pid}): {error}")]
    System {
        /// The daemon.
        pid: u32,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Ends the daemon and waits until it is gone.
///
/// # Errors
/// [`DrainError`].
pub fn run(flags: &DrainFlags) -> Result<(), DrainError> {
    let endpoint = flags.endpoint()?.socket();
    let pid = ask_to_leave(&endpoint)?;
    let started = Instant::now();
    while claim::is_held_by(&endpoint, pid) {
        if started.elapsed() > Duration::from_millis(HANDOVER_MS) {
            return Err(EndpointError::Stays {
                pid,
                endpoint: endpoint.to_string(),
            }
            .into());
        }
        thread::sleep(POLL);
    }
    writeln!(std::io::stdout(), "metald {pid} has ended")
        .map_err(|error| DrainError::System { pid, error })
}

/// Asks the daemon at `endpoint` to leave. Returns its process id.
///
/// # Errors
/// [`DrainError`].
pub fn ask_to_leave(endpoint: &UnixEndpoint) -> Result<u32, DrainError> {
    let pid = socket::pid_of_daemon(endpoint)?;
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM) {
        // It has ended meanwhile.
        Ok(()) | Err(nix::Error::ESRCH) => Ok(pid),
        Err(error) => Err(DrainError::System {
            pid,
            error: error.into(),
        }),
    }
}
