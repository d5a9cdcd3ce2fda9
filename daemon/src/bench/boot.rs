//! How long a daemon takes until it listens, how long a model takes until it can be used, and how
//! much memory the daemon then has in use. The cache is address space until it is written.

use std::io::Write;
use std::time::Instant;

use metal_rpc_protocol::CreateCache;
use serde::Serialize;

use super::BenchError;
use super::client::{Client, groups, load_model};
use super::flags::BootFlags;
use super::own_daemon::OwnDaemon;

/// One start.
#[derive(Debug, Serialize)]
struct Boot {
    /// From the start of the process until it answered, in milliseconds.
    start_ms: f64,
    /// From `LoadModel` until the model could be used, in milliseconds.
    load_ms: f64,
    /// Weights, in bytes.
    weights_bytes: u64,
    /// The cache that was created and not written, in bytes.
    cache_bytes: u64,
    /// Memory in use before the model was loaded, in bytes.
    idle_resident_bytes: u64,
    /// Memory in use after the cache was created, in bytes.
    resident_bytes: u64,
}

/// Starts daemons one after the other and prints what each took.
///
/// # Errors
/// [`BenchError`].
pub fn run(flags: &BootFlags) -> Result<(), BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut output = std::io::stdout().lock();
    for _ in 0..flags.repeat {
        let daemon = OwnDaemon::start(&flags.daemon)?;
        let boot = runtime.block_on(boot(flags, &daemon))?;
        if flags.json {
            let line = serde_json::to_string(&boot).expect("plain numbers");
            writeln!(output, "{line}")?;
        } else {
            writeln!(
                output,
                "start {:.1} ms, load {:.1} ms, weights {} MiB, resident {} MiB without and {} \
                 MiB with the model and an empty cache of {} MiB",
                boot.start_ms,
                boot.load_ms,
                boot.weights_bytes >> 20,
                boot.idle_resident_bytes >> 20,
                boot.resident_bytes >> 20,
                boot.cache_bytes >> 20
            )?;
        }
    }
    Ok(())
}

async fn boot(flags: &BootFlags, daemon: &OwnDaemon) -> Result<Boot, BenchError> {
    let idle_resident_bytes = daemon.resident_bytes()?;
    let mut client = Client::connect(&daemon.endpoint).await?;
    let (max_model_len, max_num_seqs, max_num_batched_tokens) = (2048, 256, 2048);
    let limits = (max_model_len, max_num_seqs, max_num_batched_tokens);
    let asked = Instant::now();
    let load = load_model(&flags.model.model, &flags.model.dtype, limits);
    let loaded = client.load(load).await?;
    let load_ms = asked.elapsed().as_secs_f64() * 1e3;
    let block_size = flags.model.block_size;
    let block_bytes: u64 = loaded
        .kv_cache_specs
        .iter()
        .map(|spec| {
            let element = if spec.dtype == "float32" { 4 } else { 2 };
            2 * element
                * u64::from(spec.num_kv_heads)
                * u64::from(spec.head_dim)
                * u64::from(block_size)
        })
        .sum();
    let num_blocks = (u64::from(flags.cache_mib) << 20) / block_bytes;
    let create = CreateCache {
        num_blocks: u32::try_from(num_blocks).unwrap_or(u32::MAX),
        block_size,
        groups: groups(&loaded.kv_cache_specs),
    };
    let created = client
        .create_cache(flags.daemon.memory_fraction, create)
        .await?;
    let resident_bytes = daemon.resident_bytes()?;
    client.goodbye().await?;
    Ok(Boot {
        start_ms: daemon.start_time.as_secs_f64() * 1e3,
        load_ms,
        weights_bytes: loaded.weights_bytes,
        cache_bytes: created.block_bytes * u64::from(created.num_blocks),
        idle_resident_bytes,
        resident_bytes,
    })
}
