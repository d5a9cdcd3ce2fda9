//! Everything that can happen to the engine.

use std::time::Instant;

use metal_rpc_protocol::{CreateCache, Exec, LoadModel, ReserveMemory, Sample};

use tokio::sync::oneshot;

use super::EngineStatus;
use crate::models::loaded::ModelKey;
use crate::models::{Model, ModelError};
use crate::outbox::Outbox;
use crate::session::{SessionId, Ticket};

/// Everything that can happen to the engine.
#[derive(Debug)]
pub enum EngineMessage {
    /// A frontend said hello.
    Open {
        /// The new session.
        session: SessionId,
        /// What people call the frontend.
        frontend: String,
        /// Its share of the device, relative to other frontends'.
        weight: u32,
        /// Where its replies go.
        outbox: Outbox,
    },
    /// A session is over.
    Close {
        /// The session.
        session: SessionId,
    },
    /// A session asks for something.
    Request {
        /// The session.
        session: SessionId,
        /// `seq` of the message.
        seq: u64,
        /// When it arrived.
        received: Instant,
        /// The message.
        request: EngineRequest,
        /// Its place in the queue.
        ticket: Ticket,
    },
    /// A model was loaded, or not.
    Loaded {
        /// Which.
        key: ModelKey,
        /// The weights.
        result: Result<Box<dyn Model>, ModelError>,
    },
    /// The device has done what was submitted, and the steps that end with it are answered.
    Completed {
        /// Whose steps.
        sessions: Vec<SessionId>,
        /// Whether it was a forward.
        was_forward: bool,
        /// Whether that went wrong.
        has_failed: bool,
    },
    /// Somebody asks what the engine does.
    Status {
        /// Who waits for it.
        answer: oneshot::Sender<EngineStatus>,
    },
    /// The daemon stops.
    Stop,
}

/// The requests that are the engine's to serve.
#[derive(Debug)]
pub enum EngineRequest {
    /// See [`metal_rpc_protocol::Request::LoadModel`].
    LoadModel(LoadModel),
    /// See [`metal_rpc_protocol::Request::ReserveMemory`].
    ReserveMemory(ReserveMemory),
    /// See [`metal_rpc_protocol::Request::CreateCache`].
    CreateCache(CreateCache),
    /// See [`metal_rpc_protocol::Request::Exec`].
    Exec(Exec),
    /// See [`metal_rpc_protocol::Request::Sample`].
    Sample(Sample),
}
