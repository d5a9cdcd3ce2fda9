//! `metald serve`: everything put together.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::config::Config;
use crate::device::DeviceError;
use crate::dispatch::{DaemonInfo, Dispatcher};
use crate::endpoint::{Endpoint, EndpointError, TcpAddress, UnixEndpoint};
use crate::engine::EngineHandle;
use crate::session::registry::Binding;
use crate::socket::{self, SocketError};
use crate::tcp::Gate;

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`DeviceError`].
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The port cannot be had.
    #[error("cannot listen on {address}: {error}")]
    Tcp {
        /// Where.
        address: TcpAddress,
        /// What the system said.
        error: std::io::Error,
    },
    /// The operating system refused.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`ServeError`].
pub fn run(config: &Config) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> Result<(), ServeError> {
    let (endpoint, binding) = match &config.endpoint {
        Endpoint::Unix(endpoint) => (endpoint.clone(), Binding::Token),
        Endpoint::Tcp(address, _) => (
            UnixEndpoint::behind_gate(address.port()),
            Binding::Connection,
        ),
    };
    let claim = endpoint.claim()?;
    let engine = EngineHandle::start(config.engine.clone())?;
    let (sender, receiver) = socket::bind(&endpoint).await?;
    claim.restrict()?;
    open_gate(&config.endpoint, &endpoint).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => info!("SIGTERM"),
            _ = interrupt.recv() => info!("SIGINT"),
        }
    };
    let info = DaemonInfo {
        epoch: epoch(),
        started: Instant::now(),
        device: config.engine.device.to_string(),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        endpoint = %config.endpoint,
        device = info.device,
        memory_bytes = config.engine.memory.limit_bytes,
        "serving"
    );
    Dispatcher::new(info, engine, sender, binding)
        .run(receiver, stop)
        .await;
    info!("stopped");
    Ok(())
}

/// Opens the way in from the network, if that is where frontends come from.
async fn open_gate(endpoint: &Endpoint, socket: &UnixEndpoint) -> Result<(), ServeError> {
    if let Endpoint::Tcp(address, token) = endpoint {
        let gate = Gate::bind(address, token.clone(), socket).await;
        let gate = gate.map_err(|error| ServeError::Tcp {
            address: address.clone(),
            error,
        })?;
        tokio::spawn(gate.run());
    }
    Ok(())
}

/// The time of the start, which no two daemons of an endpoint share.
fn epoch() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos())
}
