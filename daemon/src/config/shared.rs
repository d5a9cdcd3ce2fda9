//! Flags that several commands have. Their structs have no doc comments, which clap would show as
//! those of the commands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::ConfigError;
use crate::device::{Device, MemoryBudget};
use crate::endpoint::{Endpoint, EndpointError};
use crate::engine::EngineConfig;
use crate::models::{Checkpoints, ModelRoots};

#[derive(Debug, Args)]
pub(super) struct EndpointFlags {
    /// Where frontends reach the daemon [default: a socket in the user's runtime directory].
    #[arg(
        long,
        env = "METAL_RPC_ENDPOINT",
        value_name = "ipc://PATH|tcp://HOST:PORT"
    )]
    endpoint: Option<String>,
    /// File with the token of an endpoint of TCP, private to its owner.
    #[arg(long, env = "METAL_RPC_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl EndpointFlags {
    pub(super) fn resolve(&self) -> Result<Endpoint, EndpointError> {
        // An empty variable says nothing.
        let text = self.endpoint.as_deref().filter(|text| !text.is_empty());
        Endpoint::new(text, self.token_file())
    }

    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }
}

#[derive(Debug, Args)]
pub(super) struct EngineFlags {
    /// What models run on.
    #[arg(
        long,
        env = "VLLM_MLX_DEVICE",
        default_value = "cpu",
        value_name = "cpu|gpu"
    )]
    device: String,
    /// Share of the device's memory that weights and caches of all frontends may take.
    #[arg(
        long,
        env = "VLLM_METAL_MEMORY_FRACTION",
        default_value_t = 0.9,
        value_name = "FRACTION"
    )]
    memory_fraction: f64,
}

impl EngineFlags {
    pub(super) fn resolve(&self, model_keep_alive: Duration) -> Result<EngineConfig, ConfigError> {
        let device: Device = self.device.parse()?;
        let fraction = self.memory_fraction;
        if !(fraction > 0.0 && fraction <= 1.0) {
            return Err(ConfigError::MemoryFraction(fraction));
        }
        let memory = match device.own_memory_bytes()? {
            Some(total_bytes) => MemoryBudget::of(total_bytes, fraction),
            None => MemoryBudget::of_this_machine(fraction)?,
        };
        Ok(EngineConfig {
            device,
            memory,
            model_keep_alive,
            model_roots: ModelRoots::everything(),
            models: Arc::new(Checkpoints),
            turn_tokens: device.turn_tokens(),
        })
    }
}
