//! The way in and out: ZeroMQ's protocol, a ROUTER that listens and a DEALER that connects.
//!
//! Both ends are ours, and speak ZMTP 3.0 with libzmq and with each other. A library would read a
//! frame of any length that is announced, and pass each message through queues and tasks of its
//! own. Here a message is read by the task of its connection straight into the dispatcher's queue,
//! and sent by the thread that has it.
//!
//! A message is one frame. A peer is one connection and has a number of ours; the identity that
//! it chose is not read. What is on a network is sealed, and opened at the edge (`admission.rs`).
//!
//! # Layout
//! - `zmtp.rs`: greeting and frames; `reader.rs`: bytes to messages
//! - `listener.rs`: who is let in; `connection.rs`: one connection; `outgoing.rs`: its way out
//! - `router.rs`: all connections; `dealer.rs`: the other end
//!
//! # Invariants
//! - Before it has greeted, and on TCP shown the token, a connection costs the memory of a few
//!   kilobytes, one of [`MAX_STRANGERS`](crate::limits::MAX_STRANGERS) places and five seconds.
//! - Memory is taken for what a peer has sent, never for what it announces.
//! - Whoever sends never waits for a peer.

mod admission;
mod connection;
mod dealer;
mod error;
mod listener;
mod outgoing;
mod reader;
mod router;
mod zmtp;

use std::time::Duration;

pub use dealer::{Dealer, ask, pid_of_daemon};
pub use error::{SocketError, Undelivered};
pub use listener::Listener;
pub use router::{Router, SocketReceiver, SocketSender, router};
pub use zmtp::ZmtpError;

/// How long a peer may take to read what waits for it, or to answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection. No two of a daemon have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(u64);

impl From<u64> for Peer {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Where replies leave.
pub trait SendReply: Clone + Send + Sync + 'static {
    /// Sends one message. Never waits: what a peer does not read at once is sent when it does.
    ///
    /// # Errors
    /// [`Undelivered`].
    fn send(&self, peer: Peer, payload: Vec<u8>) -> Result<(), Undelivered>;

    /// Waits until all that was sent has left.
    fn flushed(&self) -> impl Future<Output = ()> + Send;
}
