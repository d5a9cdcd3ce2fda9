//! `metald status`: what sessions are known here, and what the engine says of them and of itself.
//!
//! The engine is asked, and may not answer; the rest of the report is worth having then too.

use std::time::{Duration, Instant};

use metal_rpc_kernels::footprint_bytes;
use metal_rpc_protocol::{Reply, ReplyEnvelope, SessionStatus, StatusReport, encode_reply};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{DaemonInfo, Dispatcher};
use crate::engine::{EngineMessage, EngineStatus, SessionUse};
use crate::limits::LEASE_MS;
use crate::session::SessionId;
use crate::session::registry::Connection;
use crate::socket::{Peer, SendReply};

/// How long the engine has to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(1);

impl<S: SendReply> Dispatcher<S> {
    /// Answers a peer that asks what the daemon does. Dropped if too many such answers are on their
    /// way. Never waits.
    pub(super) fn report(&mut self, peer: Peer, seq: u64, now: Instant) {
        let Ok(permit) = self.places.clone().try_acquire_owned() else {
            return;
        };
        let (answer, answered) = oneshot::channel();
        // If the queue is full, `answered` ends at once and the report says that nobody answered.
        let _ = self
            .engine
            .messages
            .try_send(EngineMessage::Status { answer });
        let sessions = self
            .registry
            .iter()
            .map(|connection| (connection.id, known(connection, now)));
        let sessions: Vec<_> = sessions.collect();
        let (info, socket) = (self.info.clone(), self.socket.clone());
        self.reports.spawn(async move {
            let asked = Instant::now();
            let engine = match timeout(ENGINE_TIMEOUT, answered).await {
                Ok(Ok(engine)) => Some((engine, asked.elapsed())),
                _ => None,
            };
            let reply = Reply::StatusReport(merge(&info, sessions, engine));
            // A peer that is gone needs no answer.
            let _ = socket.send(peer, encode_reply(&ReplyEnvelope { seq, reply }));
            drop(permit);
        });
    }
}

/// What is known of a session without the engine.
fn known(connection: &Connection, now: Instant) -> SessionStatus {
    let silent = now - connection.last_heard;
    let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
    SessionStatus {
        frontend: connection.hello.frontend.clone(),
        pid: connection.hello.pid,
        vllm_version: connection.hello.vllm_version.clone(),
        model: None,
        running_requests: 0,
        reserved_bytes: 0,
        granted_blocks: 0,
        used_blocks: 0,
        steps: 0,
        tokens: 0,
        weight: connection.hello.weight,
        silent_ms,
        lease_left_ms: u64::from(LEASE_MS).saturating_sub(silent_ms),
    }
}

fn merge(
    info: &DaemonInfo,
    mut sessions: Vec<(SessionId, SessionStatus)>,
    engine: Option<(EngineStatus, Duration)>,
) -> StatusReport {
    let engine_us = engine
        .as_ref()
        .map(|(_, took)| u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    let engine = engine.map(|(engine, _)| engine).unwrap_or_default();
    for (id, used) in engine.sessions {
        if let Some((_, session)) = sessions.iter_mut().find(|(session, _)| *session == id) {
            add_use(session, used);
        }
    }
    StatusReport {
        pid: std::process::id(),
        epoch: info.epoch,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: info.started.elapsed().as_secs(),
        restarts: info.restarts,
        previous_end: info.previous_end.map(|end| end.name().to_owned()),
        device: info.device.clone(),
        sessions: sessions.into_iter().map(|(_, session)| session).collect(),
        models: engine.models,
        kv: engine.kv,
        served: engine.served,
        footprint_bytes: footprint_bytes().unwrap_or(0),
        engine_us,
    }
}

fn add_use(session: &mut SessionStatus, used: SessionUse) {
    session.model = used.model;
    session.running_requests = used.running_requests;
    session.reserved_bytes = used.reserved_bytes;
    session.granted_blocks = used.granted_blocks;
    session.used_blocks = used.used_blocks;
    session.steps = used.steps;
    session.tokens = used.tokens;
}
