//! How the daemon is told what to do: flags over environment variables over defaults.

mod shared;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::bench::flags::BenchCommand;
use crate::device::DeviceError;
use crate::endpoint::{Endpoint, EndpointError, TcpAccess};
use crate::engine::EngineConfig;
use crate::limits::{MAX_TOKENS_PER_FORWARD, MIN_STEP_TIMEOUT_S, MIN_TURN_TOKENS};
use crate::models::{ModelError, ModelRoots};
use shared::{EndpointFlags, EngineFlags};

/// The daemon that owns the GPU, the paged KV cache and MLX model execution for vLLM.
#[derive(Debug, Parser)]
#[command(name = "metald", version, about)]
pub struct Flags {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `metald` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve vLLM frontends until SIGTERM or SIGINT.
    Serve(ServeFlags),
    /// Start a daemon in the background and wait until it listens.
    Start(StartFlags),
    /// Show what a running daemon does.
    Status(StatusFlags),
    /// Have a running daemon finish its steps, send its frontends to the next one, and end.
    Drain(DrainFlags),
    /// Continue a prompt with a model, without vLLM and without a running daemon.
    Generate(GenerateFlags),
    /// Measure a daemon: rates, start times, memory.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// Flags of `metald serve`.
#[derive(Debug, Args)]
pub struct ServeFlags {
    #[command(flatten)]
    endpoint: EndpointFlags,
    /// Whether to serve an endpoint of TCP: on the interface that it names, or on any.
    #[arg(
        long,
        env = "METAL_RPC_ALLOW_TCP",
        default_value = "no",
        num_args = 0..=1,
        default_missing_value = "named",
        value_name = "no|named|any",
        hide_possible_values = true
    )]
    allow_tcp: TcpAccess,
    #[command(flatten)]
    engine: EngineFlags,
    /// Seconds that a model stays in memory after its last frontend has left.
    #[arg(
        long,
        env = "METAL_RPC_MODEL_KEEP_ALIVE_S",
        default_value_t = 300,
        value_name = "SECONDS"
    )]
    model_keep_alive_s: u64,
    /// Most tokens of one forward while several frontends share the device: the longer a turn, the
    /// longer others wait for theirs [default: 64 on a CPU, 256 on a GPU].
    #[arg(long, env = "METAL_RPC_TURN_TOKENS", value_name = "N")]
    turn_tokens: Option<u32>,
    /// Ask the daemon that serves this endpoint to leave, and take its place.
    #[arg(long)]
    take_over: bool,
    /// Seconds after which a step that has not ended is taken for stuck, and the daemon ends with
    /// exit code 70 so that the next one can start.
    #[arg(
        long,
        env = "METAL_RPC_STEP_TIMEOUT_S",
        default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(MIN_STEP_TIMEOUT_S..),
        value_name = "SECONDS"
    )]
    step_timeout_s: u64,
    /// Folder that models may be read from; may be given several times, or as a list with colons in
    /// the variable [default: all that this user may read].
    #[arg(
        long,
        env = "METAL_RPC_MODEL_ROOTS",
        value_delimiter = ':',
        value_name = "DIR"
    )]
    model_root: Vec<PathBuf>,
    /// Write logs as JSON lines.
    #[arg(long)]
    log_json: bool,
    /// Log each step.
    #[arg(long, env = "VLLM_METAL_DEBUG", value_parser = parse_switch, default_value = "0", num_args = 0..=1, default_missing_value = "1", value_name = "0|1")]
    debug: bool,
}

/// Flags of `metald start`. The daemon reads the other settings from its environment.
#[derive(Debug, Args)]
pub struct StartFlags {
    #[command(flatten)]
    endpoint: EndpointFlags,
    /// Where the daemon's log is appended.
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
}

/// Flags of `metald status`.
#[derive(Debug, Args)]
pub struct StatusFlags {
    #[command(flatten)]
    endpoint: EndpointFlags,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `metald drain`.
#[derive(Debug, Args)]
pub struct DrainFlags {
    #[command(flatten)]
    endpoint: EndpointFlags,
}

/// Flags of `metald generate`.
#[derive(Debug, Args)]
pub struct GenerateFlags {
    #[command(flatten)]
    engine: EngineFlags,
    /// Folder of the model, in Hugging Face's layout.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// What weights and KV cache are held in.
    #[arg(
        long,
        default_value = "bfloat16",
        value_name = "float32|float16|bfloat16"
    )]
    pub dtype: String,
    /// Most tokens to generate.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub max_tokens: u32,
    /// 0 takes the most likely token each time.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Makes draws repeatable.
    #[arg(long)]
    pub seed: Option<i64>,
    /// What to continue.
    pub prompt: String,
}

/// Why the daemon cannot be configured so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// See [`EndpointError`].
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// See [`DeviceError`].
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model root is not there.
    #[error("model root: {0}")]
    ModelRoot(#[source] ModelError),
    /// Not a share.
    #[error("memory fraction must be above 0 and at most 1, but is {0}")]
    MemoryFraction(f64),
    /// A turn must have a token for each session, and fit a forward.
    #[error(
        "--turn-tokens (METAL_RPC_TURN_TOKENS) must be {MIN_TURN_TOKENS} to {MAX_TOKENS_PER_FORWARD}, \
         but is {0}"
    )]
    TurnTokens(u32),
    /// The system does not say how much memory there is.
    #[error("the size of the memory is not known: {0}")]
    Memory(#[from] std::io::Error),
}

/// What `metald serve` runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where frontends reach it.
    pub endpoint: Endpoint,
    /// Whether the daemon that serves it now is asked to leave.
    pub take_over: bool,
    /// The engine's part.
    pub engine: EngineConfig,
    /// How long a step may take.
    pub step_timeout: Duration,
    /// Whether logs are JSON lines.
    pub log_json: bool,
    /// Whether each step is logged.
    pub debug: bool,
}

impl ServeFlags {
    /// Checks the flags.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let endpoint = self.endpoint.resolve()?;
        if let Endpoint::Tcp(address, _) = &endpoint {
            address.check_served(self.allow_tcp)?;
        }
        Ok(Config {
            endpoint,
            take_over: self.take_over,
            step_timeout: Duration::from_secs(self.step_timeout_s),
            engine: self.engine_config()?,
            log_json: self.log_json,
            debug: self.debug,
        })
    }
}

impl ServeFlags {
    fn engine_config(&self) -> Result<EngineConfig, ConfigError> {
        let keep_alive = Duration::from_secs(self.model_keep_alive_s);
        let config = self.engine.resolve(keep_alive)?;
        let turn_tokens = self.turn_tokens.unwrap_or(config.turn_tokens);
        if !(MIN_TURN_TOKENS..=MAX_TOKENS_PER_FORWARD).contains(&turn_tokens) {
            return Err(ConfigError::TurnTokens(turn_tokens));
        }
        Ok(EngineConfig {
            model_roots: self.model_roots()?,
            turn_tokens,
            ..config
        })
    }

    fn model_roots(&self) -> Result<ModelRoots, ConfigError> {
        // An empty variable says nothing.
        let is_named = |root: &&PathBuf| !root.as_os_str().is_empty();
        let named: Vec<_> = self.model_root.iter().filter(is_named).cloned().collect();
        if named.is_empty() {
            return Ok(ModelRoots::everything());
        }
        ModelRoots::new(&named).map_err(ConfigError::ModelRoot)
    }
}

impl StartFlags {
    /// Where the daemon will be.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        self.endpoint.resolve()
    }

    /// The file with the token, for the daemon to read too.
    #[must_use]
    pub fn token_file(&self) -> Option<&Path> {
        self.endpoint.token_file()
    }
}

impl StatusFlags {
    /// Where the daemon is.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        self.endpoint.resolve()
    }
}

impl DrainFlags {
    /// Where the daemon is.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn endpoint(&self) -> Result<Endpoint, EndpointError> {
        self.endpoint.resolve()
    }
}

impl GenerateFlags {
    /// What to run on.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn engine(&self) -> Result<EngineConfig, ConfigError> {
        self.engine.resolve(Duration::ZERO)
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "" | "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        _ => Err("must be 0 or 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    fn serve(arguments: &[&str]) -> Result<Config, ConfigError> {
        let first = ["metald", "serve", "--endpoint", "ipc:///run/m/metald.sock"];
        let flags = Flags::try_parse_from(first.iter().chain(arguments)).expect("they parse");
        match flags.command {
            Command::Serve(serve) => serve.resolve(),
            other => panic!("{other:?} is not serve"),
        }
    }

    #[test]
    fn flags_become_a_checked_config() {
        let config = serve(&["--device", "cpu", "--memory-fraction", "0.5"]).expect("it is valid");
        assert_eq!(config.engine.device, Device::Cpu);
        assert_eq!(config.engine.model_keep_alive, Duration::from_secs(300));
        assert_eq!(config.engine.turn_tokens, Device::Cpu.turn_tokens());
        let long_turns = serve(&["--turn-tokens", "4096"]).expect("it is valid");
        assert_eq!(long_turns.engine.turn_tokens, 4096);
        assert!(!config.debug);
        assert!(serve(&["--debug"]).expect("it is valid").debug);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for fraction in ["0", "1.5", "-1", "NaN"] {
            let result = serve(&[&format!("--memory-fraction={fraction}")]);
            assert!(
                matches!(result, Err(ConfigError::MemoryFraction(_))),
                "{fraction}"
            );
        }
        for turn_tokens in ["0", "63", "131073"] {
            let result = serve(&["--turn-tokens", turn_tokens]);
            assert!(
                matches!(result, Err(ConfigError::TurnTokens(_))),
                "{turn_tokens}"
            );
        }
        assert!(matches!(
            serve(&["--model-root", "/nowhere"]),
            Err(ConfigError::ModelRoot(_))
        ));
        assert!(matches!(
            serve(&["--device", "tpu"]),
            Err(ConfigError::Device(_))
        ));
    }
}
