//! What the engine tells about itself, for `metald status`.

use metal_rpc_protocol::{KvStatus, ModelStatus, ServedStatus};

use super::Engine;
use crate::session::{Session, SessionId};

/// What the engine tells about itself.
#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    /// By session.
    pub sessions: Vec<(SessionId, SessionUse)>,
    /// Models in memory.
    pub models: Vec<ModelStatus>,
    /// The caches of all models.
    pub kv: KvStatus,
    /// What was done since the start.
    pub served: ServedStatus,
}

/// What one session uses.
#[derive(Clone, Debug, Default)]
pub struct SessionUse {
    /// Folder of its model.
    pub model: Option<String>,
    /// Requests that it runs.
    pub running_requests: u32,
    /// Bytes of KV cache that it was promised, or granted.
    pub reserved_bytes: u64,
    /// Blocks that it may use.
    pub granted_blocks: u32,
    /// Blocks that hold something.
    pub used_blocks: u32,
    /// Steps answered.
    pub steps: u64,
    /// Tokens run.
    pub tokens: u64,
}

impl Engine {
    pub(super) fn status(&self) -> EngineStatus {
        let mut status = EngineStatus {
            served: self.served,
            ..EngineStatus::default()
        };
        for (id, session) in &self.sessions {
            status.sessions.push((*id, session_use(session)));
            status.kv.granted_bytes += session.reserved_bytes;
        }
        status.kv.budget_bytes = self.config.memory.limit_bytes;
        for (key, loaded) in &self.models {
            status.models.push(ModelStatus {
                path: key.path.display().to_string(),
                model_type: loaded.model.args().model_type.to_owned(),
                dtype: key.dtype.name().to_owned(),
                weights_bytes: loaded.model.weights_bytes(),
                sessions: loaded.num_sessions,
            });
            if let Some(cache) = &loaded.cache {
                status.kv.used_bytes += cache.pool.num_granted() as u64 * cache.block_bytes;
            }
        }
        status
    }
}

fn session_use(session: &Session) -> SessionUse {
    let cache = session.cache.as_ref();
    let running = cache.map_or(0, |cache| cache.requests.iter().flatten().count());
    SessionUse {
        model: session
            .model
            .as_ref()
            .map(|key| key.path.display().to_string()),
        running_requests: u32::try_from(running).unwrap_or(u32::MAX),
        reserved_bytes: session.reserved_bytes,
        granted_blocks: cache.map_or(0, |cache| cache.block_map.num_granted()),
        used_blocks: cache.map_or(0, |cache| cache.block_map.num_used()),
        steps: session.num_steps,
        tokens: session.num_tokens,
    }
}
