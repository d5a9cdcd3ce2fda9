//! `metald start`: a daemon in the background.
//!
//! The daemon is a child of this short-lived process and of nobody else: when it listens, this
//! process ends, and whoever asked may end too without taking the daemon along.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::StartFlags;
use crate::endpoint::{Endpoint, EndpointError};
use crate::status::{self, StatusError};

/// How often the daemon is looked at.
const POLL: Duration = Duration::from_millis(5);
/// How long a daemon may take until it listens. It loads no model before.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is shown of the log of a daemon that ended.
const LOG_TAIL_BYTES: u64 = 4096;

/// Why no daemon was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The log cannot be written, or the process not started.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It ended at once.
    #[error("the daemon ended with {status}; the end of {}:\n{tail}", log.display())]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// What it wrote.
        tail: String,
    },
    /// It does not listen.
    #[error("the daemon does not listen after {} s; see {}", TIMEOUT.as_secs(), log.display())]
    Timeout {
        /// Its log.
        log: PathBuf,
    },
}

/// Starts a daemon and waits until it listens.
///
/// # Errors
/// [`StartError`].
#[expect(clippy::print_stdout, reason = "the command's output")]
pub fn run(flags: &StartFlags) -> Result<(), StartError> {
    let endpoint = flags.endpoint()?;
    let log = &flags.log;
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).map_err(io(log))?;
    }
    let child = daemon(&endpoint, log, |command| {
        let token_file = flags.token_file();
        command
            .arg("serve")
            .envs(token_file.map(|path| ("METAL_RPC_TOKEN_FILE", path)))
            .process_group(0);
    })?;
    println!(
        "metald listens on {endpoint}, pid {}, log {}",
        child.id(),
        log.display()
    );
    Ok(())
}

/// Starts this program as a child of this process, with the arguments that `configure` adds, and
/// waits until it listens. What it writes is appended to `log`.
///
/// # Errors
/// [`StartError`].
pub fn daemon(
    endpoint: &Endpoint,
    log: &Path,
    configure: impl FnOnce(&mut Command),
) -> Result<Child, StartError> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(io(log))?;
    let log_start = file.metadata().map_err(io(log))?.len();
    let errors = file.try_clone().map_err(io(log))?;
    let program = std::env::current_exe().map_err(io(Path::new("metald")))?;
    let mut command = Command::new(&program);
    command
        .env("METAL_RPC_ENDPOINT", endpoint.to_string())
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors);
    configure(&mut command);
    let mut child = command.spawn().map_err(io(&program))?;
    wait_until_it_listens(endpoint, &mut child, (log, log_start))?;
    Ok(child)
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    let path = path.to_owned();
    move |error| StartError::Io { path, error }
}

fn wait_until_it_listens(
    endpoint: &Endpoint,
    child: &mut Child,
    (log, log_start): (&Path, u64),
) -> Result<(), StartError> {
    let started = Instant::now();
    while started.elapsed() < TIMEOUT {
        // A process that cannot be waited for has ended.
        if let Ok(Some(status)) = child.try_wait() {
            return Err(StartError::Ended {
                status,
                log: log.to_owned(),
                tail: log_tail(log, log_start).unwrap_or_default(),
            });
        }
        let report: Result<_, StatusError> = status::ask(endpoint);
        if report.is_ok_and(|report| report.pid == child.id()) {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    Err(StartError::Timeout {
        log: log.to_owned(),
    })
}

fn log_tail(log: &Path, log_start: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let from = file
        .metadata()?
        .len()
        .saturating_sub(LOG_TAIL_BYTES)
        .max(log_start);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
