//! `metald`: parse, run, and turn errors into exit codes.

use std::process::ExitCode;

use clap::Parser;
use metal_rpc_kernels::exit_now;
use metald::config::{Command, Flags};
use metald::endpoint::EndpointError;
use metald::server::{EXIT_WEDGED, ServeError};
use metald::start::StartError;
use metald::{bench, drain, generate, server, start, status, telemetry};

fn main() -> ExitCode {
    let result = match Flags::parse().command {
        Command::Serve(flags) => match flags.resolve() {
            Ok(config) => {
                telemetry::init(config.debug, config.log_json);
                let served = server::run(&config).map_err(Failure::from);
                // A model may still be loading, or the device may hang.
                exit_now(served.map_or_else(|failure| failure.report(), |()| 0));
            }
            Err(error) => Err(Failure::from(error)),
        },
        Command::Start(flags) => start::run(&flags).map_err(Failure::from),
        Command::Status(flags) => status::run(&flags).map_err(Failure::from),
        Command::Drain(flags) => drain::run(&flags).map_err(Failure::from),
        Command::Generate(flags) => generate::run(&flags).map_err(Failure::from),
        Command::Bench(command) => bench::run(&command).map_err(Failure::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}

/// `EX_TEMPFAIL`: another daemon serves the endpoint already.
const ALREADY_RUNNING: u8 = 75;

/// What ends the process, and how.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] metald::config::ConfigError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Status(#[from] status::StatusError),
    #[error(transparent)]
    Drain(#[from] drain::DrainError),
    #[error(transparent)]
    Generate(#[from] generate::GenerateError),
    #[error(transparent)]
    Bench(#[from] bench::BenchError),
}

impl Failure {
    /// Says it, and returns the exit code, as in sysexits.h.
    #[expect(clippy::print_stderr, reason = "this is where errors meet people")]
    fn report(&self) -> u8 {
        eprintln!("metald: {self}");
        match self {
            Self::Serve(ServeError::Endpoint(EndpointError::Taken(_))) => ALREADY_RUNNING,
            Self::Serve(ServeError::Wedged(_)) => EXIT_WEDGED,
            Self::Start(StartError::Ended { status, .. })
                if status.code() == Some(ALREADY_RUNNING.into()) =>
            {
                ALREADY_RUNNING
            }
            // EX_CONFIG
            Self::Config(_) => 78,
            // EX_UNAVAILABLE
            Self::Status(_) | Self::Drain(drain::DrainError::Socket(_)) => 69,
            Self::Serve(_)
            | Self::Start(_)
            | Self::Drain(_)
            | Self::Generate(_)
            | Self::Bench(_) => 1,
        }
    }
}
