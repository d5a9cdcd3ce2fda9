//! `metald serve`: everything put together.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::claim::{Claim, End, Succession};
use crate::config::Config;
use crate::device::DeviceError;
use crate::dispatch::{DaemonInfo, Dispatcher};
use crate::drain::{self, DrainError};
use crate::endpoint::{Endpoint, EndpointError};
use crate::engine::EngineHandle;
use crate::leave::Leave;
use crate::limits::FAREWELL_MS;
use crate::session::registry::Binding;
use crate::socket::{Listener, Router, SocketError, router};
use crate::watchdog::{self, Pulse, Wedge};

/// How often the daemon looks whether its socket is still there.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// Exit code of a daemon that was stuck: `EX_SOFTWARE`.
pub const EXIT_WEDGED: u8 = 70;

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`DrainError`].
    #[error("cannot take over: {0}")]
    TakeOver(#[from] DrainError),
    /// See [`DeviceError`].
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operating system refused.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
    /// A step did not end.
    #[error("{0}")]
    Wedged(Wedge),
}

/// Serves until SIGTERM or SIGINT, or until a step does not end.
///
/// The caller ends the process at once: threads of the engine may still run.
///
/// # Errors
/// [`ServeError`].
pub fn run(config: &Config) -> Result<(), ServeError> {
    let succession = Succession::announce(&config.endpoint.socket())?;
    if config.take_over {
        take_over(config)?;
    }
    let claim = Arc::new(succession.wait(config.take_over)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(config, &claim));
    // Not waiting for the engine, which may be stuck.
    runtime.shutdown_background();
    match served? {
        Leave::Asked => {
            claim.end(End::Stopped);
            info!("stopped");
            Ok(())
        }
        Leave::Wedged(wedge) => {
            claim.end(End::StepTimeout);
            Err(ServeError::Wedged(wedge))
        }
    }
}

fn take_over(config: &Config) -> Result<(), DrainError> {
    match drain::ask_to_leave(&config.endpoint.socket()) {
        Ok(pid) => {
            info!(pid, "taking over");
            Ok(())
        }
        Err(DrainError::Socket(SocketError::NobodyListens(_))) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn serve(config: &Config, claim: &Arc<Claim>) -> Result<Leave, ServeError> {
    let mut signals = Signals::new()?;
    let engine = EngineHandle::start(config.engine.clone())?;
    let (router, receiver) = router();
    let mut listeners = listen(config, claim, &router).await?;
    let binding = match &config.endpoint {
        Endpoint::Unix(_) => Binding::Token,
        Endpoint::Tcp(..) => Binding::Connection,
    };
    let (pulse, wedged) = watch(config, claim, &engine);
    let held = Arc::clone(claim);
    let leave = async move {
        let leave = tokio::select! {
            () = signals.next() => Leave::Asked,
            () = unreachable(&held) => Leave::Asked,
            Ok(wedge) = wedged => Leave::Wedged(wedge),
        };
        held.withdraw();
        listeners.abort_all();
        tokio::spawn(end_at_once(signals));
        leave
    };
    let info = DaemonInfo {
        epoch: epoch(),
        started: Instant::now(),
        restarts: claim.num_restarts(),
        previous_end: claim.previous_end(),
        device: config.engine.device.to_string(),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        endpoint = %config.endpoint,
        device = info.device,
        memory_bytes = config.engine.memory.limit_bytes,
        restarts = info.restarts,
        "serving"
    );
    // On one of the runtime's threads: what a connection has read is then dispatched without waking
    // another one.
    let dispatcher = Dispatcher::new(info, engine, router.sender(), binding);
    let served = tokio::spawn(dispatcher.run(receiver, pulse, leave)).await;
    Ok(served.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())))
}

/// Opens the ways in: the private socket, and the port if that is where frontends come from.
async fn listen(
    config: &Config,
    claim: &Claim,
    router: &Router,
) -> Result<JoinSet<()>, ServeError> {
    let mut listeners = JoinSet::new();
    let local = Listener::unix(&config.endpoint.socket(), router)?;
    claim.listening()?;
    listeners.spawn(local.run());
    if let Endpoint::Tcp(address, token) = &config.endpoint {
        let remote = Listener::tcp(address, token.clone(), router).await?;
        listeners.spawn(remote.run());
    }
    Ok(listeners)
}

/// Waits until nobody finds our socket any more: the next daemon could never start beside us.
async fn unreachable(claim: &Claim) {
    while claim.is_reachable() {
        sleep(SOCKET_CHECK).await;
    }
    warn!("the socket was removed, so this daemon makes room for the next one");
}

/// Starts the watchdog. Returns the dispatcher's pulse, and where the news of a wedge comes.
fn watch(
    config: &Config,
    claim: &Arc<Claim>,
    engine: &EngineHandle,
) -> (Pulse, oneshot::Receiver<Wedge>) {
    let pulse = Pulse::default();
    let mut pulses = engine.pulses.clone();
    pulses.push(("dispatcher", pulse.clone()));
    let (news, wedged) = oneshot::channel();
    let claim = Arc::clone(claim);
    watchdog::start(pulses, config.step_timeout, move |wedge| {
        // Usually the dispatcher takes leave and this process is over before the sleep is.
        let _ = news.send(wedge);
        thread::sleep(Duration::from_millis(2 * FAREWELL_MS));
        warn!("{wedge}");
        claim.end(End::StepTimeout);
        metal_rpc_kernels::exit_now(EXIT_WEDGED);
    });
    (pulse, wedged)
}

/// What ends the daemon from outside.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM"),
            _ = self.interrupt.recv() => info!("SIGINT"),
        }
    }
}

/// A second signal is from somebody who does not want to wait.
async fn end_at_once(mut signals: Signals) {
    signals.next().await;
    warn!("ending at once");
    metal_rpc_kernels::exit_now(1);
}

/// The time of the start, which no two daemons of an endpoint share.
fn epoch() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_secs() * 1_000_000_000 + u64::from(now.subsec_nanos())
}
