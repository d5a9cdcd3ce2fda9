//! A Unix socket that nobody else can reach.

use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use super::EndpointError;

/// Bytes that a Unix socket's path may have on macOS (104 with the final zero).
pub(super) const MAX_PATH_BYTES: usize = 103;

/// A Unix socket: `ipc://PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixEndpoint {
    path: PathBuf,
}

impl UnixEndpoint {
    /// `metal-rpc/metald.sock` in the user's runtime directory, or `metal-rpc-UID/metald.sock` in
    /// the directory for temporary files where there is none.
    #[must_use]
    pub fn default_of_user() -> Self {
        Self {
            path: directory_of_user().join("metald.sock"),
        }
    }

    /// The socket of a daemon that frontends reach through a gate on this port.
    #[must_use]
    pub fn behind_gate(port: u16) -> Self {
        Self {
            path: directory_of_user().join(format!("tcp-{port}.sock")),
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket at an absolute path.
    ///
    /// # Errors
    /// [`EndpointError::TooLong`].
    pub fn at(path: PathBuf) -> Result<Self, EndpointError> {
        if path.as_os_str().len() > MAX_PATH_BYTES {
            return Err(EndpointError::TooLong { path });
        }
        Ok(Self { path })
    }

    /// Makes the endpoint ours: a private directory, the lock, and no stale socket.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn claim(&self) -> Result<Claim, EndpointError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| EndpointError::Io { path, error }
        };
        let directory = self
            .path
            .parent()
            .expect("the path is absolute and names a file");
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
        if !is_private {
            return Err(EndpointError::Directory {
                path: directory.to_owned(),
            });
        }
        let lock_path = self.path.with_extension("lock");
        let file = fs::File::create(&lock_path).map_err(io(&lock_path))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => {
                return Err(EndpointError::Taken(self.to_string()));
            }
            Err((_, error)) => return Err(io(&lock_path)(error.into())),
        };
        match fs::symlink_metadata(&self.path) {
            Ok(stale) if stale.file_type().is_socket() => {
                fs::remove_file(&self.path).map_err(io(&self.path))?;
            }
            Ok(_) => {
                return Err(EndpointError::InTheWay {
                    path: self.path.clone(),
                });
            }
            Err(_) => {}
        }
        Ok(Claim {
            path: self.path.clone(),
            _lock: lock,
        })
    }
}

/// The user's runtime directory, or one in the directory for temporary files.
fn directory_of_user() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("metal-rpc"),
        _ => std::env::temp_dir().join(format!("metal-rpc-{}", geteuid())),
    }
}

impl fmt::Display for UnixEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ipc://{}", self.path.display())
    }
}

/// An endpoint that is ours as long as this lives. Dropping it removes the socket.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl Claim {
    /// Closes the bound socket to other users. The directory has kept them out so far.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn restrict(&self) -> std::io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(0o600))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn endpoint(directory: &tempfile::TempDir) -> UnixEndpoint {
        UnixEndpoint {
            path: directory.path().join("a/b/metald.sock"),
        }
    }

    #[test]
    fn an_endpoint_is_claimed_once_and_free_again_afterwards() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        let claim = endpoint.claim().expect("it is free");
        assert!(matches!(endpoint.claim(), Err(EndpointError::Taken(_))));
        drop(claim);
        endpoint.claim().expect("it is free again");
    }

    #[test]
    fn a_stale_socket_is_removed_and_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let endpoint = endpoint(&directory);
        drop(endpoint.claim().expect("it is free"));
        drop(UnixListener::bind(endpoint.path()).expect("the directory exists"));
        let claim = endpoint
            .claim()
            .expect("a dead daemon's socket is no obstacle");
        assert!(!endpoint.path().exists());
        drop(claim);
        fs::write(endpoint.path(), "precious").expect("the directory exists");
        assert!(matches!(
            endpoint.claim(),
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
        let endpoint = UnixEndpoint {
            path: open.join("metald.sock"),
        };
        assert!(matches!(
            endpoint.claim(),
            Err(EndpointError::Directory { .. })
        ));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).expect("it is new");
        let endpoint = UnixEndpoint {
            path: link.join("metald.sock"),
        };
        assert!(matches!(
            endpoint.claim(),
            Err(EndpointError::Directory { .. })
        ));
    }
}
