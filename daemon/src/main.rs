//! `metald`: parse, run, and turn errors into exit codes.

use std::process::ExitCode;

use clap::Parser;
use metald::config::{Command, Flags};
use metald::endpoint::EndpointError;
use metald::{generate, server, status, telemetry};

fn main() -> ExitCode {
    let result = match Flags::parse().command {
        Command::Serve(flags) => match flags.resolve() {
            Ok(config) => {
                telemetry::init(config.debug, config.log_json);
                server::run(&config).map_err(Failure::from)
            }
            Err(error) => Err(Failure::from(error)),
        },
        Command::Status(flags) => status::run(&flags).map_err(Failure::from),
        Command::Generate(flags) => generate::run(&flags).map_err(Failure::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What ends the process, and how.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] metald::config::ConfigError),
    #[error(transparent)]
    Serve(#[from] server::ServeError),
    #[error(transparent)]
    Status(#[from] status::StatusError),
    #[error(transparent)]
    Generate(#[from] generate::GenerateError),
}

impl Failure {
    /// Exit codes as in sysexits.h.
    #[expect(clippy::print_stderr, reason = "this is where errors meet people")]
    fn report(&self) -> ExitCode {
        eprintln!("metald: {self}");
        ExitCode::from(match self {
            // EX_TEMPFAIL: another daemon serves already.
            Self::Serve(server::ServeError::Endpoint(EndpointError::Taken(_))) => 75,
            // EX_CONFIG
            Self::Config(_) => 78,
            // EX_UNAVAILABLE
            Self::Status(_) => 69,
            Self::Serve(_) | Self::Generate(_) => 1,
        })
    }
}
