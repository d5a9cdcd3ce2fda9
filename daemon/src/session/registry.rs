//! Who is connected: the dispatcher's side of sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metal_rpc_protocol::{Hello, SessionToken};

use super::ticket::Tickets;
use crate::outbox::Outbox;
use crate::socket::Peer;

/// A session's number within this daemon. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u32);

/// One connected frontend.
#[derive(Debug)]
pub struct Connection {
    /// The session's number.
    pub id: SessionId,
    /// How it introduced itself.
    pub hello: Hello,
    /// Where its replies are queued.
    pub outbox: Outbox,
    /// Where its replies are sent: the peer that last showed the token.
    pub peer: Arc<Mutex<Peer>>,
    /// Its places in the engine's queue.
    pub tickets: Tickets,
    /// When it was last heard.
    pub last_heard: Instant,
    /// `seq` of its last message.
    pub last_seq: u64,
}

/// What a session is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Its token: a frontend may go on with it from another socket.
    Token,
    /// Its token and the connection that opened it: a token that was seen on a network is worth
    /// nothing on another connection.
    Connection,
}

/// All connected frontends.
#[derive(Debug)]
pub struct Registry {
    by_token: HashMap<SessionToken, Connection>,
    next_id: u32,
    binding: Binding,
}

impl Registry {
    /// Without sessions.
    #[must_use]
    pub fn new(binding: Binding) -> Self {
        Self {
            by_token: HashMap::new(),
            next_id: 0,
            binding,
        }
    }

    /// Adds a session.
    ///
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn open(
        &mut self,
        hello: Hello,
        peer: Arc<Mutex<Peer>>,
        outbox: Outbox,
        now: Instant,
    ) -> Result<(SessionToken, &Connection), getrandom::Error> {
        let mut token = [0; 16];
        getrandom::fill(&mut token)?;
        let token = SessionToken(token);
        let id = SessionId(self.next_id);
        self.next_id += 1;
        let connection = Connection {
            id,
            hello,
            outbox,
            peer,
            tickets: Tickets::default(),
            last_heard: now,
            last_seq: 0,
        };
        Ok((
            token,
            self.by_token
                .entry(token)
                .insert_entry(connection)
                .into_mut(),
        ))
    }

    /// The session of a token, marked as heard; `None` also if it is about to be closed, or bound
    /// to another connection.
    pub fn hear(
        &mut self,
        token: SessionToken,
        peer: Peer,
        now: Instant,
    ) -> Option<&mut Connection> {
        let connection = self.by_token.get_mut(&token)?;
        if connection.outbox.is_closed() {
            return None;
        }
        let mut known = connection
            .peer
            .lock()
            .expect("nobody panics while holding it");
        if self.binding == Binding::Connection && *known != peer {
            return None;
        }
        *known = peer;
        drop(known);
        connection.last_heard = now;
        Some(connection)
    }

    /// Removes a session.
    pub fn close(&mut self, token: SessionToken) -> Option<Connection> {
        self.by_token.remove(&token)
    }

    /// Removes the sessions that were silent for longer than `lease`, and those whose outbox is
    /// closed; in the order in which they were opened.
    pub fn expire(&mut self, now: Instant, lease: Duration) -> Vec<Connection> {
        let is_over = |connection: &Connection| {
            connection.outbox.is_closed() || now - connection.last_heard > lease
        };
        let mut expired: Vec<_> = self
            .by_token
            .extract_if(|_, connection| is_over(connection))
            .map(|(_, connection)| connection)
            .collect();
        expired.sort_by_key(|connection| connection.id);
        expired
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.by_token.values()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_token.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(registry: &mut Registry, now: Instant) -> SessionToken {
        let hello = Hello {
            min_protocol_version: 1,
            max_protocol_version: 1,
            vllm_version: "0.33.0".to_owned(),
            frontend: "test".to_owned(),
            pid: 1,
            weight: 1,
        };
        let peer = Arc::new(Mutex::new(Peer::from(1)));
        let (token, _) = registry
            .open(hello, peer, Outbox::new().0, now)
            .expect("the system has random bytes");
        token
    }

    #[test]
    fn a_silent_session_expires_and_one_that_is_heard_does_not() {
        let start = Instant::now();
        let lease = Duration::from_secs(8);
        let mut registry = Registry::new(Binding::Token);
        let (silent, heard) = (open(&mut registry, start), open(&mut registry, start));
        assert_ne!(silent, heard);

        let later = start + Duration::from_secs(7);
        assert!(registry.expire(later, lease).is_empty());
        assert!(registry.hear(heard, Peer::from(2), later).is_some());

        let expired = registry.expire(start + Duration::from_secs(9), lease);
        assert_eq!(expired.len(), 1);
        assert_eq!(expired[0].id, SessionId(0));
        assert!(registry.hear(silent, Peer::from(1), later).is_none());
        assert!(registry.hear(heard, Peer::from(2), later).is_some());
    }

    #[test]
    fn a_session_whose_outbox_is_closed_expires_at_once() {
        let now = Instant::now();
        let mut registry = Registry::new(Binding::Token);
        let token = open(&mut registry, now);
        let connection = registry
            .hear(token, Peer::from(1), now)
            .expect("it is open");
        connection.outbox.close();
        assert!(registry.hear(token, Peer::from(1), now).is_none());
        assert_eq!(registry.expire(now, Duration::from_secs(8)).len(), 1);
        assert!(registry.is_empty());
    }
    #[test]
    fn a_bound_session_is_nobodys_on_another_connection() {
        let now = Instant::now();
        for (binding, is_known) in [(Binding::Token, true), (Binding::Connection, false)] {
            let mut registry = Registry::new(binding);
            let token = open(&mut registry, now);
            let later = now + Duration::from_secs(9);
            let other = registry.hear(token, Peer::from(2), later);
            assert_eq!(other.is_some(), is_known, "{binding:?}");
            // Whoever is refused does not renew the lease either.
            let expired = registry.expire(later, Duration::from_secs(8));
            assert_eq!(expired.is_empty(), is_known, "{binding:?}");
        }
    }
}
