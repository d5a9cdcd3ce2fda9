//! Where frontends reach the daemon: a private Unix socket, or a TCP port with a token.

mod tcp;
mod token;
mod unix;

use std::fmt;
use std::path::{Path, PathBuf};

use metal_rpc_protocol::auth::{AuthError, Token};
use nix::unistd::geteuid;

pub use tcp::{TcpAccess, TcpAddress};
pub use unix::UnixEndpoint;

use unix::MAX_PATH_BYTES;

/// Where a daemon is, with what it takes to get in.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// `ipc://PATH`: whoever may open the socket is let in.
    Unix(UnixEndpoint),
    /// `tcp://HOST:PORT`: whoever holds the token is let in.
    Tcp(TcpAddress, Token),
}

/// Why an endpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Not of the form that we serve.
    #[error("endpoint must be ipc://PATH with an absolute path, or tcp://HOST:PORT, but is {0:?}")]
    Form(String),
    /// Too long for the operating system.
    #[error("the socket's path may have {MAX_PATH_BYTES} bytes, {} has {}", path.display(), path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Others could reach the socket.
    #[error(
        "{} must be a directory of user {}, closed to others; run: chmod 700 {}",
        path.display(), geteuid(), path.display()
    )]
    Directory {
        /// The socket's directory.
        path: PathBuf,
    },
    /// Something else stands in the socket's place.
    #[error("{} is in the way: it is not a socket", path.display())]
    InTheWay {
        /// The socket's path.
        path: PathBuf,
    },
    /// Another daemon serves this endpoint.
    #[error("another metald serves {0}, or is about to")]
    Taken(String),
    /// The daemon that serves this endpoint was asked to leave, and has not.
    #[error(
        "metald (pid {pid}) was asked to leave {endpoint} and has not ended; try: kill -9 {pid}"
    )]
    Stays {
        /// The daemon.
        pid: u32,
        /// Where.
        endpoint: String,
    },
    /// TCP without a token.
    #[error(
        "{0} needs a token: name a file with one in METAL_RPC_TOKEN_FILE or --token-file; make it \
         with: (umask 077; openssl rand -hex 32 > FILE)"
    )]
    NoToken(TcpAddress),
    /// Others could read the token.
    #[error(
        "{} must be a file of user {}, closed to others; run: chmod 600 {}",
        path.display(), geteuid(), path.display()
    )]
    OpenToken {
        /// The file.
        path: PathBuf,
    },
    /// What the file holds is no token.
    #[error("{}: {error}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: AuthError,
    },
    /// TCP that nobody has asked for.
    #[error("{0} is served with --allow-tcp (METAL_RPC_ALLOW_TCP=named) only")]
    TcpNotAllowed(TcpAddress),
    /// All interfaces, which nobody has asked for.
    #[error(
        "{0} would listen on every interface of this machine; name the address of one, or say \
         --allow-tcp=any (METAL_RPC_ALLOW_TCP=any)"
    )]
    Wildcard(TcpAddress),
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The host's name is not known.
    #[error("{address}: {error}")]
    Host {
        /// What was looked up.
        address: TcpAddress,
        /// What the system said.
        error: std::io::Error,
    },
}

impl Endpoint {
    /// The endpoint that `text` names, or the user's own; with the token in `token_file`, which
    /// TCP needs.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn new(text: Option<&str>, token_file: Option<&Path>) -> Result<Self, EndpointError> {
        let Some(text) = text else {
            return Ok(Self::Unix(UnixEndpoint::default_of_user()));
        };
        let form = || EndpointError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("ipc://").map(PathBuf::from) {
            if !path.is_absolute() || path.file_name().is_none() {
                return Err(form());
            }
            return Ok(Self::Unix(UnixEndpoint::at(path)?));
        }
        let address = text.strip_prefix("tcp://").and_then(TcpAddress::parse);
        let address = address.ok_or_else(form)?;
        match token_file {
            Some(path) => Ok(Self::Tcp(address, token::read(path)?)),
            None => Err(EndpointError::NoToken(address)),
        }
    }

    /// The daemon's own socket, on its own machine: that of the endpoint, or the one behind its gate.
    #[must_use]
    pub fn socket(&self) -> UnixEndpoint {
        match self {
            Self::Unix(endpoint) => endpoint.clone(),
            Self::Tcp(address, _) => UnixEndpoint::behind_gate(address.port()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(endpoint) => endpoint.fmt(f),
            Self::Tcp(address, _) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_and_addresses_are_endpoints() {
        let endpoint = |text: &str| Endpoint::new(Some(text), None);
        for text in ["ipc:///run/x/metald.sock", "ipc:///a"] {
            let parsed = endpoint(text).expect("it is an endpoint");
            assert_eq!(parsed.to_string(), text);
        }
        for text in [
            "ipc://relative",
            "ipc:///",
            "",
            "/run/x",
            "tcp://",
            "tcp://host",
            "tcp://:1",
            "tcp://host:0",
            "tcp://host:65536",
            "tcp://*:1",
            "tcp://host:1/",
            "tcp://a b:1",
            "tcp://::1:1",
            "udp://host:1",
        ] {
            let error = endpoint(text).err();
            assert!(
                matches!(error, Some(EndpointError::Form(_))),
                "{text}: {error:?}"
            );
        }
        let long = format!("ipc:///{}", "x".repeat(MAX_PATH_BYTES));
        assert!(matches!(
            endpoint(&long),
            Err(EndpointError::TooLong { .. })
        ));
        assert!(matches!(Endpoint::new(None, None), Ok(Endpoint::Unix(_))));
    }

    #[test]
    fn tcp_needs_a_token() {
        for text in [
            "tcp://127.0.0.1:7777",
            "tcp://[::1]:7777",
            "tcp://gpu-1.lan:7777",
        ] {
            match Endpoint::new(Some(text), None) {
                Err(EndpointError::NoToken(address)) => assert_eq!(address.to_string(), text),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
