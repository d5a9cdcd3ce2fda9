//! The command line of `metald bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use metal_rpc_protocol::SamplingParams;
use metal_rpc_protocol::limits::{
    MAX_REQUESTS_PER_STEP, MAX_TOKENS_PER_REQUEST, MAX_TOKENS_PER_STEP,
};

use super::BenchError;
use crate::config::ServeFlags;

/// What `metald bench` can do.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Prefill and decode rates: a batch of requests at a time, two steps in flight.
    Serve(ServeBenchFlags),
    /// Start and load times and the memory of a daemon that has a model and an empty cache.
    Boot(BootFlags),
    /// What a step costs beside the model: encoding, sockets, checking, answering.
    Rpc(RpcFlags),
    /// How fast attention reads the cache, beside how fast the device copies.
    Attention(AttentionFlags),
    /// Serve models that compute nothing.
    Null(NullFlags),
    /// Write a folder with random weights.
    Checkpoint(CheckpointFlags),
}

/// The daemon that is measured.
#[derive(Clone, Debug, Args)]
pub struct DaemonFlags {
    /// What models run on.
    #[arg(
        long,
        env = "VLLM_MLX_DEVICE",
        default_value = "cpu",
        value_name = "cpu|gpu"
    )]
    pub device: String,
    /// Share of the device's memory that weights and cache may take.
    #[arg(long, default_value_t = 0.9, value_name = "FRACTION")]
    pub memory_fraction: f64,
}

/// The model that is run.
#[derive(Clone, Debug, Args)]
pub struct ModelFlags {
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
    /// Tokens in a block of the cache.
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    pub block_size: u32,
}

/// Flags of `metald bench serve`.
#[derive(Debug, Args)]
pub struct ServeBenchFlags {
    #[command(flatten)]
    pub(super) daemon: DaemonFlags,
    #[command(flatten)]
    pub(super) model: ModelFlags,
    /// A running daemon [default: one is started for the measurement].
    #[arg(long, value_name = "ipc://PATH|tcp://HOST:PORT")]
    pub(super) endpoint: Option<String>,
    /// File with the token of an endpoint of TCP.
    #[arg(long, env = "METAL_RPC_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Requests at the same time; each number is a measurement of its own.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,8,32",
        value_name = "N,…"
    )]
    pub(super) concurrency: Vec<u32>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 512, value_name = "TOKENS")]
    pub(super) prompt: u32,
    /// Tokens that each request generates after the first one.
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    pub(super) decode: u32,
    /// Times that each measurement is made.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(super) repeat: u32,
    /// Times that it is made before, and not counted.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) warmup: u32,
    /// Frontends, each with `--concurrency` requests.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(super) frontends: u32,
    /// Most tokens in one step of a frontend.
    #[arg(long, default_value_t = 2048, value_name = "TOKENS")]
    pub(super) max_num_batched_tokens: u32,
    /// 0 takes the most likely token each time.
    #[arg(long, default_value_t = 0.0)]
    pub(super) temperature: f64,
    /// Keeps the most likely tokens whose probabilities add up to this.
    #[arg(long, default_value_t = 1.0)]
    pub(super) top_p: f64,
    /// Keeps so many of the most likely tokens; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub(super) top_k: u32,
    /// Print JSON lines.
    #[arg(long)]
    pub(super) json: bool,
}

/// Flags of `metald bench boot`.
#[derive(Debug, Args)]
pub struct BootFlags {
    #[command(flatten)]
    pub(super) daemon: DaemonFlags,
    #[command(flatten)]
    pub(super) model: ModelFlags,
    /// Size of the cache, which stays empty.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub(super) cache_mib: u32,
    /// Times that a daemon is started; the first one may have to read the model from the disk.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(super) repeat: u32,
    /// Print JSON lines.
    #[arg(long)]
    pub(super) json: bool,
}

/// Flags of `metald bench rpc`.
#[derive(Debug, Args)]
pub struct RpcFlags {
    #[command(flatten)]
    pub(super) daemon: DaemonFlags,
    /// Requests of each step; each number is a measurement of its own.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,16,64,256",
        value_name = "N,…"
    )]
    pub(super) requests: Vec<u32>,
    /// Steps of each measurement.
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub(super) steps: u32,
    /// How long the model takes, in microseconds.
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    pub(super) step_us: u64,
    /// Print JSON lines.
    #[arg(long)]
    pub(super) json: bool,
}

/// Flags of `metald bench attention`.
#[derive(Debug, Args)]
pub struct AttentionFlags {
    /// What it runs on.
    #[arg(
        long,
        env = "VLLM_MLX_DEVICE",
        default_value = "cpu",
        value_name = "cpu|gpu"
    )]
    pub(super) device: String,
    /// Requests that decode.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) requests: u32,
    /// Tokens of each request.
    #[arg(long, default_value_t = 4096, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) context: u32,
}

/// Flags of `metald bench null`: those of `metald serve`, and how long a step takes.
#[derive(Debug, Args)]
pub struct NullFlags {
    #[command(flatten)]
    pub(super) serve: ServeFlags,
    /// How long the model takes, in microseconds, on no core.
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    pub(super) step_us: u64,
}

/// Flags of `metald bench checkpoint`.
#[derive(Debug, Args)]
pub struct CheckpointFlags {
    /// Name of a well-known model, or a `config.json`.
    #[arg(value_name = "SHAPE")]
    pub(super) shape: String,
    /// Folder to write.
    #[arg(value_name = "DIR")]
    pub(super) folder: PathBuf,
}

impl ServeBenchFlags {
    /// Refuses numbers that make no load.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        let longest = MAX_TOKENS_PER_REQUEST as u64 - 2;
        let most_reqs = MAX_REQUESTS_PER_STEP as u64;
        let check = |name, value: u32, limit| {
            let value = u64::from(value);
            let is_fine = value >= 1 && value <= limit;
            is_fine
                .then_some(())
                .ok_or(BenchError::Flag { name, value, limit })
        };
        for value in &self.concurrency {
            check("concurrency", *value, most_reqs)?;
        }
        check("prompt", self.prompt, longest)?;
        let rest = longest - u64::from(self.prompt) + 1;
        check("decode", self.decode, rest)?;
        check("repeat", self.repeat, 1000)?;
        if self.warmup > 0 {
            check("warmup", self.warmup, 1000)?;
        }
        check("frontends", self.frontends, 64)?;
        check("block-size", self.model.block_size, 1024)?;
        let most_tokens = MAX_TOKENS_PER_STEP as u64;
        check(
            "max-num-batched-tokens",
            self.max_num_batched_tokens,
            most_tokens,
        )
    }

    /// How tokens are sampled. Nothing ends a request early.
    pub(super) fn sampling_params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            ..SamplingParams::default()
        }
    }
}
