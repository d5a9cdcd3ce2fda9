//! Which process an endpoint belongs to, and how it passes from one to the next.
//!
//! Beside the socket lie two locks. Who holds `NAME.lock` serves the endpoint. Who holds `NAME.next`
//! is about to, and waits until the one before is gone; nobody tries for the first lock without
//! the second, so nobody overtakes a successor that waits.
//!
//! A daemon that leaves removes its socket first: no frontend comes any more, and whoever is
//! started from then on waits for it instead of giving up. The lock it keeps until its process
//! ends, so that two daemons never answer one endpoint and never hold the weights twice.
//!
//! # Invariants
//! - While a daemon serves, `NAME.lock` is held by it and `NAME.next` is not.
//! - A socket without a lock is what `kill -9` has left behind.

mod lock;

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::unistd::geteuid;

use crate::endpoint::{EndpointError, UnixEndpoint};
use crate::limits::HANDOVER_MS;
pub use lock::End;
use lock::{Record, io, read, read_record, try_lock, write};

/// How often a successor looks whether the lock is free.
const POLL: Duration = Duration::from_millis(10);

/// The right to be the next daemon of an endpoint.
#[derive(Debug)]
pub struct Succession {
    endpoint: UnixEndpoint,
    next: Flock<File>,
}

/// An endpoint that is ours. Dropping it removes the socket.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    num_starts: u64,
    previous_end: Option<End>,
    /// `NAME.lock`, until the end.
    lock: Mutex<Option<Flock<File>>>,
    /// `NAME.next`, until we listen.
    next: Mutex<Option<Flock<File>>>,
    /// Device and inode of the socket, once we listen.
    socket: OnceLock<(u64, u64)>,
}

impl Succession {
    /// Makes the socket's directory ours, and this process the next daemon.
    ///
    /// # Errors
    /// [`EndpointError::Taken`] if another one is the next already; others if the directory cannot
    /// be used.
    pub fn announce(endpoint: &UnixEndpoint) -> Result<Self, EndpointError> {
        let path = endpoint.path();
        let directory = path
            .parent()
            .expect("the path is absolute and names a file");
        make_private(directory)?;
        let path = path.with_extension("next");
        let next = try_lock(&path)?.ok_or_else(|| EndpointError::Taken(endpoint.to_string()))?;
        Ok(Self {
            endpoint: endpoint.clone(),
            next,
        })
    }

    /// Waits until the daemon before has ended, if it is about to.
    ///
    /// # Errors
    /// [`EndpointError::Taken`] if it is not, unless `asked_to_leave` says that it will be;
    /// [`EndpointError::Stays`] if it does not end in time.
    pub fn wait(self, asked_to_leave: bool) -> Result<Claim, EndpointError> {
        let path = self.endpoint.path();
        let lock_path = path.with_extension("lock");
        let started = Instant::now();
        let lock = loop {
            if let Some(lock) = try_lock(&lock_path)? {
                break lock;
            }
            if path.exists() && !asked_to_leave {
                return Err(EndpointError::Taken(self.endpoint.to_string()));
            }
            if started.elapsed() > Duration::from_millis(HANDOVER_MS) {
                return Err(EndpointError::Stays {
                    pid: read_record(&lock_path).pid,
                    endpoint: self.endpoint.to_string(),
                });
            }
            thread::sleep(POLL);
        };
        match fs::symlink_metadata(path) {
            Ok(stale) if stale.file_type().is_socket() => {
                fs::remove_file(path).map_err(io(path))?;
            }
            Ok(_) => {
                return Err(EndpointError::InTheWay {
                    path: path.to_owned(),
                });
            }
            Err(_) => {}
        }
        Claim::new(path, lock, self.next).map_err(io(&lock_path))
    }
}

impl Claim {
    fn new(path: &Path, mut lock: Flock<File>, next: Flock<File>) -> std::io::Result<Self> {
        let before = read(&mut lock);
        let record = Record {
            pid: std::process::id(),
            num_starts: before.num_starts + 1,
            end: None,
        };
        write(&mut lock, record)?;
        Ok(Self {
            path: path.to_owned(),
            num_starts: record.num_starts,
            previous_end: before.end,
            lock: Mutex::new(Some(lock)),
            next: Mutex::new(Some(next)),
            socket: OnceLock::new(),
        })
    }

    /// How many daemons have served this endpoint before this one.
    #[must_use]
    pub fn num_restarts(&self) -> u64 {
        self.num_starts - 1
    }

    /// How the one before ended; `None` if it did not say, or there was none.
    #[must_use]
    pub fn previous_end(&self) -> Option<End> {
        self.previous_end
    }

    /// Says that we listen: the bound socket is closed to other users, whom the directory has kept
    /// out so far, and from now on there may be a successor.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn listening(&self) -> std::io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(0o600))?;
        let metadata = fs::symlink_metadata(&self.path)?;
        self.socket.get_or_init(|| (metadata.dev(), metadata.ino()));
        drop(take(&self.next));
        Ok(())
    }

    /// Whether frontends still find our socket: somebody may have cleaned up its directory.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        let found = fs::symlink_metadata(&self.path).map(|found| (found.dev(), found.ino()));
        found.ok().as_ref() == self.socket.get()
    }

    /// Says that we are about to leave: nobody finds the socket any more.
    pub fn withdraw(&self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }

    /// Leaves the endpoint to the next daemon, whatever becomes of this process.
    pub fn end(&self, end: End) {
        let Some(mut lock) = take(&self.lock) else {
            return;
        };
        self.withdraw();
        let pid = std::process::id();
        let num_starts = self.num_starts;
        let record = Record {
            pid,
            num_starts,
            end: Some(end),
        };
        // Nothing depends on it but what people are told.
        let _ = write(&mut lock, record);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.end(End::Failed);
    }
}

/// Whether the daemon `pid` still serves `endpoint`, or is still about to leave it.
#[must_use]
pub fn is_held_by(endpoint: &UnixEndpoint, pid: u32) -> bool {
    let record = read_record(&endpoint.path().with_extension("lock"));
    record.pid == pid && record.end.is_none()
}

fn make_private(directory: &Path) -> Result<(), EndpointError> {
    if !directory.exists() {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io(directory))?;
    }
    let metadata = fs::symlink_metadata(directory).map_err(io(directory))?;
    let is_private = metadata.is_dir()
        && metadata.uid() == geteuid().as_raw()
        && metadata.mode().trailing_zeros() >= 6;
    if is_private {
        return Ok(());
    }
    Err(EndpointError::Directory {
        path: directory.to_owned(),
    })
}

fn take<T>(held: &Mutex<Option<T>>) -> Option<T> {
    held.lock().expect("nobody panics while holding it").take()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn endpoint(directory: &tempfile::TempDir) -> UnixEndpoint {
        let path = directory.path().join("run").join("metald.sock");
        UnixEndpoint::at(path).expect("the path is short")
    }

    fn claim(endpoint: &UnixEndpoint) -> Result<Claim, EndpointError> {
        Succession::announce(endpoint)?.wait(false)
    }

    /// A claim whose socket exists.
    fn serving(endpoint: &UnixEndpoint) -> (Claim, UnixListener) {
        let claim = claim(endpoint).expect("it is free");
        let listener = UnixListener::bind(endpoint.path()).expect("the directory exists");
        claim.listening().expect("the socket is ours");
        (claim, listener)
    }

    #[test]
    fn an_endpoint_has_one_owner() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        let (first, _listener) = serving(&endpoint);
        assert!(first.is_reachable());
        let mode = fs::metadata(endpoint.path()).expect("it was bound").mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(claim(&endpoint), Err(EndpointError::Taken(_))));
        fs::remove_file(endpoint.path()).expect("it was bound");
        assert!(!first.is_reachable());
        drop(first);
        claim(&endpoint).expect("it is free again");
    }

    #[test]
    fn one_that_starts_keeps_others_away() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        let starting = claim(&endpoint).expect("it is free");
        // It does not listen yet, which must not look as if it were about to leave.
        assert!(matches!(claim(&endpoint), Err(EndpointError::Taken(_))));
        drop(starting);
    }

    #[test]
    fn a_successor_waits_for_one_that_leaves_and_is_not_overtaken() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        let (old, _listener) = serving(&endpoint);
        old.withdraw();
        let successor = Succession::announce(&endpoint).expect("there is none yet");
        assert!(matches!(
            Succession::announce(&endpoint),
            Err(EndpointError::Taken(_))
        ));
        let waiting = thread::spawn(move || successor.wait(false));
        thread::sleep(5 * POLL);
        assert!(!waiting.is_finished());
        assert!(is_held_by(&endpoint, std::process::id()));
        old.end(End::Stopped);
        let new = waiting.join().expect("it does not panic");
        let new = new.expect("the old one is gone");
        assert_eq!(new.num_restarts(), 1);
        assert_eq!(new.previous_end(), Some(End::Stopped));
    }

    #[test]
    fn one_that_was_asked_to_leave_may_take_its_time() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        let (old, _listener) = serving(&endpoint);
        let successor = Succession::announce(&endpoint).expect("there is none yet");
        let waiting = thread::spawn(move || successor.wait(true));
        thread::sleep(5 * POLL);
        assert!(!waiting.is_finished());
        old.end(End::StepTimeout);
        let new = waiting.join().expect("it does not panic");
        assert_eq!(
            new.expect("the old one is gone").previous_end(),
            Some(End::StepTimeout)
        );
    }

    #[test]
    fn a_stale_socket_is_removed_and_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        drop(claim(&endpoint).expect("it is free"));
        drop(UnixListener::bind(endpoint.path()).expect("the directory exists"));
        let dead = claim(&endpoint).expect("a dead daemon's socket is no obstacle");
        assert!(!endpoint.path().exists());
        drop(dead);
        fs::write(endpoint.path(), "precious").expect("the directory exists");
        assert!(matches!(
            claim(&endpoint),
            Err(EndpointError::InTheWay { .. })
        ));
        assert!(endpoint.path().exists());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let open = directory.path().join("open");
        fs::create_dir(&open).expect("it is new");
        fs::set_permissions(&open, Permissions::from_mode(0o755)).expect("it is ours");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("it is new");
        for bad in [open, link] {
            let endpoint = UnixEndpoint::at(bad.join("metald.sock")).expect("the path is short");
            assert!(matches!(
                claim(&endpoint),
                Err(EndpointError::Directory { .. })
            ));
        }
    }
}
