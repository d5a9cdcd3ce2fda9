//! Logs: events with fields, to standard error. Prompt text and token ids are never logged.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// Starts logging. `RUST_LOG` selects events; otherwise `info`, or `debug` where
/// `VLLM_METAL_DEBUG` is set.
pub fn init(debug: bool, json: bool) {
    let default = if debug { "metald=debug" } else { "metald=info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(SystemTime)
        .with_writer(std::io::stderr);
    if json {
        subscriber.json().init();
    } else {
        subscriber
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}
