//! Why a socket cannot be used, and why a connection ends.

use std::io;

use metal_rpc_protocol::auth::AuthError;

use super::SEND_TIMEOUT;
use super::zmtp::ZmtpError;
use crate::endpoint::{Endpoint, TcpAddress, UnixEndpoint};
use crate::limits::MAX_GUESTS;

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The Unix socket could not be opened.
    #[error("cannot listen on {endpoint}: {error}")]
    Bind {
        /// Where.
        endpoint: UnixEndpoint,
        /// What the system said.
        error: io::Error,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}: {error}")]
    BindTcp {
        /// Where.
        address: TcpAddress,
        /// What the system said.
        error: io::Error,
    },
    /// Nobody listens there.
    #[error("no metald listens on {0}; start one with `metald start` or `metald serve`")]
    NobodyListens(Endpoint),
    /// The daemon does not let us in, or is not the one that it should be.
    #[error("metald at {endpoint}: {error}")]
    Auth {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        error: AuthError,
    },
    /// The daemon says why it does not let us in.
    #[error("metald at {endpoint} refuses: {reason}")]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// Its words.
        reason: String,
    },
    /// The connection is not to be trusted any more.
    #[error(transparent)]
    BrokenSeal(#[from] AuthError),
    /// There are no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The daemon does not answer.
    #[error("the daemon did not answer for {SEND_TIMEOUT:?}")]
    NoAnswer,
    /// The daemon is gone, or is none.
    #[error("the connection is lost: {0}")]
    Lost(#[from] ZmtpError),
    /// The operating system refused.
    #[error("cannot reach the daemon: {0}")]
    System(#[from] io::Error),
}

/// Why a reply does not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    /// The connection is closed.
    #[error("the peer is gone")]
    Gone,
    /// As many replies as may wait for the peer to read do so.
    #[error("the peer does not read")]
    Full,
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Zmtp(#[from] ZmtpError),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("{MAX_GUESTS} connections are open, which is the most")]
    Full,
    #[error("it was silent for too long")]
    Silent,
    #[error("it did not read for {SEND_TIMEOUT:?}")]
    Stuck,
    #[error("the daemon ends")]
    Stopping,
}

impl Ended {
    /// Whether this is what happens when a process ends, or asks a daemon that ends.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Zmtp(ZmtpError::Ended | ZmtpError::Cut | ZmtpError::Io(_)) | Self::Stopping
        )
    }
}
