//! What can go wrong with a measurement.

use std::path::PathBuf;

use metal_rpc_protocol::{CodecError, ErrorReply, RowError};

use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::endpoint::EndpointError;
use crate::engine::EngineError;
use crate::server::ServeError;
use crate::socket::SocketError;
use crate::start::StartError;

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`DeviceError`].
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// See [`EngineError`].
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`ServeError`].
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// See [`StartError`].
    #[error(transparent)]
    Start(#[from] StartError),
    /// See [`SocketError`].
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The daemon's answer cannot be read.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The daemon refused.
    #[error("the daemon refused: {}", .0.message)]
    Refused(ErrorReply),
    /// The daemon answered with another message than it should.
    #[error("the daemon answered {0}")]
    Unexpected(&'static str),
    /// A request got no token.
    #[error("row {} got no token: {}", .0.row, .0.message)]
    Row(RowError),
    /// A number that makes no load.
    #[error("{name} must be 1 to {limit}, but is {value}")]
    Flag {
        /// Which.
        name: &'static str,
        /// What it is.
        value: u64,
        /// What it may be.
        limit: u64,
    },
    /// Not a shape that we know, nor a file.
    #[error("{name:?} is neither a file nor one of the shapes {known}")]
    Shape {
        /// What was asked for.
        name: String,
        /// The shapes that we know.
        known: String,
    },
    /// A family whose tensors we cannot invent.
    #[error("random weights can be made for {known}, not for model_type {model_type:?}")]
    Family {
        /// Of the configuration.
        model_type: String,
        /// What can be made.
        known: String,
    },
    /// The configuration says nothing of something that is needed.
    #[error("{}: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// The weights cannot be written.
    #[error("{}: {error}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: safetensors::SafeTensorError,
    },
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}
