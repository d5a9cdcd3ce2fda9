//! From bytes to whoever serves them: sessions here, everything about models in the engine.
//!
//! Never waits for a frontend or for the engine, so that heartbeats and `metald status` are
//! answered while a model loads.

mod report;

use std::sync::mpsc::TrySendError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metal_rpc_protocol::limits::MAX_WEIGHT;
use metal_rpc_protocol::{
    ErrorCode, ErrorReply, Hello, PROTOCOL_VERSION, Reply, ReplyEnvelope, Request, RequestEnvelope,
    Scope, SessionToken, Welcome, decode_request, encode_reply,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::claim::End;
use crate::engine::{EngineHandle, EngineMessage, EngineRequest};
use crate::leave::{Leave, take_leave};
use crate::limits::{HEARTBEAT_MS, LEASE_MS, MAX_MESSAGES_QUEUED, MAX_REPORTS, MAX_SESSIONS};
use crate::outbox::Outbox;
use crate::session::Registry;
use crate::session::registry::{Binding, Connection};
use crate::socket::{Peer, SendReply, SocketReceiver};
use crate::watchdog::Pulse;

/// How often leases are looked at.
const LEASE_CHECK: Duration = Duration::from_millis(250);

/// What the daemon says about itself.
#[derive(Clone, Debug)]
pub struct DaemonInfo {
    /// Differs between any two daemon processes.
    pub epoch: u64,
    /// When it started.
    pub started: Instant,
    /// Daemons that have served its endpoint before.
    pub restarts: u64,
    /// How the last of them ended, if it said so.
    pub previous_end: Option<End>,
    /// `cpu` or `gpu`.
    pub device: String,
}

/// State of the dispatching task.
#[derive(Debug)]
pub struct Dispatcher<S> {
    info: DaemonInfo,
    engine: EngineHandle,
    socket: S,
    registry: Registry,
    /// Answers that wait for the engine's part of them.
    reports: JoinSet<()>,
    places: Arc<Semaphore>,
}

impl<S: SendReply> Dispatcher<S> {
    /// A dispatcher without sessions.
    #[must_use]
    pub fn new(info: DaemonInfo, engine: EngineHandle, socket: S, binding: Binding) -> Self {
        Self {
            info,
            engine,
            socket,
            registry: Registry::new(binding),
            reports: JoinSet::new(),
            places: Arc::new(Semaphore::new(MAX_REPORTS)),
        }
    }

    /// Serves until `leave` completes, then takes leave. Beats `pulse` meanwhile.
    pub async fn run(
        mut self,
        mut receiver: SocketReceiver,
        pulse: Pulse,
        leave: impl Future<Output = Leave>,
    ) -> Leave {
        let mut leases = interval(LEASE_CHECK);
        leases.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(leave);
        let leave = loop {
            tokio::select! {
                leave = &mut leave => break leave,
                _ = leases.tick() => {
                    pulse.beat();
                    self.expire();
                }
                Some((peer, bytes)) = receiver.receive() => self.dispatch(peer, &bytes),
            }
        };
        take_leave(self.engine, self.registry, &self.socket, &leave).await;
        leave
    }

    /// Serves one message. Never waits.
    pub fn dispatch(&mut self, peer: Peer, bytes: &[u8]) {
        let received = now();
        let envelope = match decode_request(bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                // Not the error: it may show a number of the message.
                warn!(num_bytes = bytes.len(), "refused what is no message");
                let error = refusal(ErrorCode::BadMessage, error.to_string());
                return self.reply_outside(peer, 0, Reply::Error(error));
            }
        };
        let RequestEnvelope {
            session,
            seq,
            request,
        } = envelope;
        match (session, request) {
            (_, Request::Hello(hello)) => self.open(peer, seq, hello, received),
            (_, Request::Status) => self.report(peer, seq, received),
            (Some(token), request) => {
                self.dispatch_in_session(peer, token, (seq, received), request)
            }
            (None, request) => {
                let message = format!("{} needs the token of a session", request.name());
                let error = refusal(ErrorCode::UnknownSession, message);
                self.reply_outside(peer, seq, Reply::Error(error));
            }
        }
    }

    fn dispatch_in_session(
        &mut self,
        peer: Peer,
        token: SessionToken,
        (seq, received): (u64, Instant),
        request: Request,
    ) {
        let Some(connection) = self.registry.hear(token, peer, received) else {
            let message = "this daemon has no such session: its lease ran out, or another daemon \
                           opened it; say hello again";
            let code = ErrorCode::UnknownSession;
            let error = ErrorReply {
                code,
                scope: Scope::Session,
                message: message.to_owned(),
            };
            return self.reply_outside(peer, seq, Reply::Error(error));
        };
        if seq <= connection.last_seq {
            let message = format!("seq must rise, but {seq} follows {}", connection.last_seq);
            return connection
                .outbox
                .send_error(seq, refusal(ErrorCode::OutOfOrder, message));
        }
        connection.last_seq = seq;
        let (session, outbox) = (connection.id, connection.outbox.clone());
        let ticket = connection.tickets.take();
        let request = match request {
            Request::Ping => return outbox.send(seq, Reply::Pong),
            Request::Goodbye => return self.close(token, seq),
            Request::LoadModel(load) => EngineRequest::LoadModel(load),
            Request::ReserveMemory(reserve) => EngineRequest::ReserveMemory(reserve),
            Request::CreateCache(create) => EngineRequest::CreateCache(create),
            Request::Exec(exec) => EngineRequest::Exec(exec),
            Request::Sample(sample) => EngineRequest::Sample(sample),
            Request::Hello(_) | Request::Status => unreachable!("`dispatch` has served these"),
        };
        let is_queued = ticket.is_some_and(|ticket| {
            let message = EngineMessage::Request {
                session,
                seq,
                received,
                request,
                ticket,
            };
            !matches!(
                self.engine.messages.try_send(message),
                Err(TrySendError::Full(_))
            )
        });
        if !is_queued {
            let message = format!(
                "{MAX_MESSAGES_QUEUED} messages of this session wait for the engine, which is the \
                 most"
            );
            outbox.send_error(seq, refusal(ErrorCode::TooManySteps, message));
        }
    }

    fn open(&mut self, peer: Peer, seq: u64, hello: Hello, now: Instant) {
        match self.try_open(peer, seq, hello, now) {
            Ok(()) => {}
            Err(error) => {
                warn!(error = error.message, "refused a frontend");
                self.reply_outside(peer, seq, Reply::Error(error));
            }
        }
    }

    fn try_open(
        &mut self,
        peer: Peer,
        seq: u64,
        hello: Hello,
        now: Instant,
    ) -> Result<(), ErrorReply> {
        check_hello(&hello)?;
        if self.registry.len() >= MAX_SESSIONS {
            let message = format!("{MAX_SESSIONS} frontends are connected, which is the most");
            return Err(refusal(ErrorCode::TooManySessions, message));
        }
        let (frontend, weight) = (hello.frontend.clone(), hello.weight);
        let peer = Arc::new(Mutex::new(peer));
        let outbox = self.outbox_towards(Arc::clone(&peer));
        let opened = self.registry.open(hello, peer, outbox.clone(), now);
        let (token, connection) = opened.map_err(|error| {
            refusal(
                ErrorCode::TooManySessions,
                format!("no random session token: {error}"),
            )
        })?;
        info!(
            session = connection.id.0,
            frontend,
            pid = connection.hello.pid,
            "frontend connected"
        );
        let session = connection.id;
        outbox.send(
            seq,
            Reply::Welcome(Welcome {
                protocol_version: PROTOCOL_VERSION,
                daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                epoch: self.info.epoch,
                session: token.0.to_vec(),
                heartbeat_ms: HEARTBEAT_MS,
                lease_ms: LEASE_MS,
                device: self.info.device.clone(),
            }),
        );
        self.tell_engine(EngineMessage::Open {
            session,
            frontend,
            weight,
            outbox,
        });
        Ok(())
    }

    fn close(&mut self, token: SessionToken, seq: u64) {
        if let Some(connection) = self.registry.close(token) {
            info!(
                session = connection.id.0,
                frontend = connection.hello.frontend,
                "goodbye"
            );
            connection.outbox.send(seq, Reply::Farewell);
            self.tell_engine(EngineMessage::Close {
                session: connection.id,
            });
        }
    }

    /// Closes the sessions that must not go on.
    pub fn expire(&mut self) {
        let now = now();
        for connection in self
            .registry
            .expire(now, Duration::from_millis(LEASE_MS.into()))
        {
            let Connection {
                id,
                hello,
                last_heard,
                ..
            } = connection;
            let silent_ms = u64::try_from((now - last_heard).as_millis()).unwrap_or(u64::MAX);
            warn!(
                session = id.0,
                frontend = hello.frontend,
                silent_ms,
                "session closed"
            );
            self.tell_engine(EngineMessage::Close { session: id });
        }
        while self.reports.try_join_next().is_some() {}
    }

    /// Openings and closings must not be lost. The queue has room for those of all sessions, so
    /// this waits only while the engine works off a burst.
    fn tell_engine(&self, message: EngineMessage) {
        if self.engine.messages.send(message).is_err() {
            warn!("the engine is gone");
        }
    }

    /// Sends to whichever peer has last shown the session's token.
    fn outbox_towards(&self, peer: Arc<Mutex<Peer>>) -> Outbox {
        let socket = self.socket.clone();
        Outbox::through(move |bytes| {
            let peer = *peer.lock().expect("nobody panics while holding it");
            socket.send(peer, bytes)
        })
    }

    /// Answers a peer that has no session.
    fn reply_outside(&self, peer: Peer, seq: u64, reply: Reply) {
        let bytes = encode_reply(&ReplyEnvelope { seq, reply });
        // A peer that is gone, or does not read, needs no answer.
        let _ = self.socket.send(peer, bytes);
    }
}

/// Checks what a frontend says of itself.
fn check_hello(hello: &Hello) -> Result<(), ErrorReply> {
    let spoken = hello.min_protocol_version..=hello.max_protocol_version;
    if !spoken.contains(&PROTOCOL_VERSION) {
        let message = format!(
            "metald {} speaks protocol version {PROTOCOL_VERSION}, this frontend {} to {}; \
                 install the same version of both",
            env!("CARGO_PKG_VERSION"),
            hello.min_protocol_version,
            hello.max_protocol_version
        );
        return Err(refusal(ErrorCode::UnsupportedProtocol, message));
    }
    if !(1..=MAX_WEIGHT).contains(&hello.weight) {
        let message = format!(
            "weight (METAL_RPC_WEIGHT) must be 1 to {MAX_WEIGHT}, but is {}",
            hello.weight
        );
        return Err(refusal(ErrorCode::BadMessage, message));
    }
    Ok(())
}

/// The clock of leases, which tests may stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn refusal(code: ErrorCode, message: String) -> ErrorReply {
    ErrorReply {
        code,
        scope: Scope::Request,
        message,
    }
}
