//! `metald bench`: a load generator that speaks to a daemon as a frontend does.
//!
//! Needs neither Python nor a network: [`checkpoint`] writes a folder of random weights.
//!
//! # Layout
//! - [`flags`]: the command line
//! - [`checkpoint`]: random weights in the shapes of well-known models
//! - [`null`]: a daemon whose models compute nothing; [`rpc`]: where the time of its steps goes
//! - [`serve`]: prefill and decode rates of a daemon; [`boot`]: its start times and memory
//! - [`attention`]: how fast attention reads the cache
//! - `client`: one session over the socket; `workload`: the steps of a batch of requests, as a
//!   scheduler would send them
//! - `own_daemon`: a daemon for as long as a measurement takes; `statistics`

pub mod attention;
pub mod boot;
pub mod checkpoint;
mod client;
mod error;
pub mod flags;
pub mod null;
mod own_daemon;
pub mod rpc;
pub mod serve;
mod statistics;
mod workload;

pub use error::BenchError;
use flags::BenchCommand;

/// Runs one measurement, or prepares one.
///
/// # Errors
/// [`BenchError`].
pub fn run(command: &BenchCommand) -> Result<(), BenchError> {
    match command {
        BenchCommand::Serve(flags) => serve::run(flags),
        BenchCommand::Boot(flags) => boot::run(flags),
        BenchCommand::Null(flags) => null::run(flags),
        BenchCommand::Rpc(flags) => rpc::run(flags),
        BenchCommand::Attention(flags) => attention::run(flags),
        BenchCommand::Checkpoint(flags) => checkpoint::run(flags),
    }
}
