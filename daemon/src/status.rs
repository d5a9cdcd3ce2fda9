//! `metald status`: asks a running daemon what it does.

use std::io::Write;

use metal_rpc_protocol::{
    CodecError, Reply, Request, RequestEnvelope, StatusReport, decode_reply, encode_request,
};

use crate::config::StatusFlags;
use crate::endpoint::{Endpoint, EndpointError};
use crate::socket::{self, SocketError};

/// Why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The answer cannot be read.
    #[error("the daemon's answer cannot be read: {0}")]
    Codec(#[from] CodecError),
    /// The answer is another message.
    #[error("the daemon answered {0} instead of a status report")]
    Unexpected(&'static str),
    /// The operating system refused, or nobody reads the output.
    #[error("cannot show it: {0}")]
    System(#[from] std::io::Error),
}

/// Prints the status of the daemon.
///
/// # Errors
/// [`StatusError`].
pub fn run(flags: &StatusFlags) -> Result<(), StatusError> {
    let report = ask(&flags.endpoint()?)?;
    let shown = if flags.json {
        serde_json::to_string_pretty(&report).expect("plain numbers and strings") + "\n"
    } else {
        text(&report)
    };
    Ok(std::io::stdout().write_all(shown.as_bytes())?)
}

/// Asks the daemon at `endpoint`.
///
/// # Errors
/// [`StatusError`].
pub fn ask(endpoint: &Endpoint) -> Result<StatusReport, StatusError> {
    let request = RequestEnvelope {
        session: None,
        seq: 1,
        request: Request::Status,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(socket::ask(endpoint, encode_request(&request)))?;
    match decode_reply(&answer)?.reply {
        Reply::StatusReport(report) => Ok(report),
        other => Err(StatusError::Unexpected(other.name())),
    }
}

/// The report as people read it.
fn text(report: &StatusReport) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        writeln!(text, "{arguments}").expect("memory can be written");
    };
    let StatusReport {
        pid,
        version,
        uptime_s,
        restarts,
        previous_end,
        device,
        kv,
        served,
        ..
    } = report;
    line(format_args!(
        "metald {version}, pid {pid}, up {uptime_s} s, device {device}"
    ));
    if *restarts > 0 {
        let end = previous_end.as_deref().unwrap_or("killed");
        line(format_args!(
            "restarts   {restarts}, the last one ended: {end}"
        ));
    }
    line(format_args!(
        "memory     {} MiB budget, {} MiB granted to caches, {} MiB of them used",
        kv.budget_bytes >> 20,
        kv.granted_bytes >> 20,
        kv.used_bytes >> 20
    ));
    line(format_args!(
        "served     {} steps of {} tokens in {} forwards; {} MiB of memory in all",
        served.steps,
        served.tokens,
        served.forwards,
        report.footprint_bytes >> 20
    ));
    if report.engine_us.is_none() {
        line(format_args!("engine     did not answer within a second"));
    }
    for model in &report.models {
        line(format_args!(
            "model      {} ({}, {}, {} MiB, {} frontends)",
            model.path,
            model.model_type,
            model.dtype,
            model.weights_bytes >> 20,
            model.sessions
        ));
    }
    for session in &report.sessions {
        line(format_args!(
            "frontend   {} (pid {}, weight {}): {} requests, {}/{} blocks, {} steps, {} tokens, \
             heard {} ms ago",
            session.frontend,
            session.pid,
            session.weight,
            session.running_requests,
            session.used_blocks,
            session.granted_blocks,
            session.steps,
            session.tokens,
            session.silent_ms
        ));
    }
    text
}
