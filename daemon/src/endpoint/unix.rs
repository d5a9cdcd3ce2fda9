//! A Unix socket that nobody else can reach.

use std::fmt;
use std::path::{Path, PathBuf};

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
