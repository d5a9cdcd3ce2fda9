//! Everything that can happen to the engine.

use std::time::Instant;

use metal_rpc_protocol::{CreateCache, Exec, LoadModel, ReserveMemory, Sample};

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
    /// The device has done a forward, and its steps are answered.
    Completed {
        /// The sessions that had a step in it.
        sessions: Vec<SessionId>,
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
