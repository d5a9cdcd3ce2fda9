//! A lock file, which also says whose it is.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::endpoint::EndpointError;

/// How a daemon ended, as it says itself. One that was killed says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It was asked to.
    Stopped,
    /// A step did not end.
    StepTimeout,
    /// It could not go on serving.
    Failed,
}

impl End {
    /// Its name, as in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::StepTimeout => "step_timeout",
            Self::Failed => "failed",
        }
    }
}

/// What the lock file says of whoever holds it, or held it last.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// The daemon.
    pub(super) pid: u32,
    /// Daemons that have served this endpoint, this one included.
    pub(super) num_starts: u64,
    /// How it ended; absent while it lives, and for ever if it was killed.
    pub(super) end: Option<End>,
}

/// The lock, or `None` if somebody else holds it.
pub(super) fn try_lock(path: &Path) -> Result<Option<Flock<File>>, EndpointError> {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(io(path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(io(path)(error.into())),
    }
}

/// What the lock file at `path` says, without the lock.
pub(super) fn read_record(path: &Path) -> Record {
    File::open(path).map_or_else(|_| Record::default(), |mut file| read(&mut file))
}

/// What a lock file says; nothing, if it is new or damaged.
pub(super) fn read(file: &mut File) -> Record {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => Record::default(),
    }
}

/// Says it instead of what was said before.
pub(super) fn write(file: &mut File, record: Record) -> std::io::Result<()> {
    let text = serde_json::to_string(&record).expect("plain numbers and a name");
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// An error of the operating system, with the path that it is about.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> EndpointError + use<> {
    let path = path.to_owned();
    move |error| EndpointError::Io { path, error }
}
