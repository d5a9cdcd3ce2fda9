//! How the daemon takes leave of its frontends.

use std::time::Duration;

use metal_rpc_protocol::{ErrorCode, ErrorReply, Scope};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::engine::EngineHandle;
use crate::limits::{DRAIN_MS, FAREWELL_MS};
use crate::session::Registry;
use crate::socket::SendReply;
use crate::watchdog::Wedge;

/// Why the daemon ends.
#[derive(Debug)]
pub enum Leave {
    /// A signal asked it to.
    Asked,
    /// One of its threads is stuck.
    Wedged(Wedge),
}

/// Lets the steps in flight finish, unless they are stuck, and sends every frontend to the next
/// daemon.
pub async fn take_leave<S: SendReply>(
    engine: EngineHandle,
    registry: Registry,
    socket: &S,
    leave: &Leave,
) {
    let (code, message) = match leave {
        Leave::Asked => {
            finish_steps(engine).await;
            let message = "the daemon stops; say hello to the next one".to_owned();
            (ErrorCode::ShuttingDown, message)
        }
        Leave::Wedged(wedge) => {
            error!("{wedge}");
            (ErrorCode::StepFailed, wedge.to_string())
        }
    };
    info!(num_sessions = registry.len(), "taking leave");
    for connection in registry.iter() {
        let error = ErrorReply {
            code,
            scope: Scope::Daemon,
            message: message.clone(),
        };
        connection.outbox.send_error(0, error);
    }
    if timeout(Duration::from_millis(FAREWELL_MS), socket.flushed())
        .await
        .is_err()
    {
        warn!("some frontends did not read their last replies");
    }
}

/// The engine's threads finish what is in flight; its replies are queued by then.
async fn finish_steps(engine: EngineHandle) {
    let finish = spawn_blocking(move || engine.stop());
    if timeout(Duration::from_millis(DRAIN_MS), finish)
        .await
        .is_err()
    {
        warn!(
            drain_ms = DRAIN_MS,
            "leaving steps in flight behind; frontends recompute them"
        );
    }
}
