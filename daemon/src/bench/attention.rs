//! How fast attention reads the cache while it decodes, beside how fast the device copies.

use std::io::Write;
use std::thread;
use std::time::Instant;

use metal_rpc_kernels::{AttentionMetadata, AttentionParams, eval, paged_attention, upload};
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype, random};
use serde::Serialize;

use super::BenchError;
use super::flags::AttentionFlags;
use super::statistics::median;
use crate::device::Device;
use crate::engine::EngineError;

/// Heads of Qwen3-8B.
const NUM_HEADS: i32 = 32;
const NUM_KV_HEADS: i32 = 8;
const HEAD_DIM: i32 = 128;
const BLOCK_SIZE: i32 = 16;

/// Layers that take turns, so that no cache of the device holds what is read next.
const LAYERS: i32 = 4;
/// Times that a layer's turn comes in one measurement.
const TURNS: i32 = 5;

/// The output.
#[derive(Debug, Serialize)]
struct Row {
    program: &'static str,
    requests: i32,
    context: i32,
    /// Of one layer, in microseconds.
    attention_us: f64,
    /// Keys and values read in that time.
    attention_gb_per_s: f64,
    /// Bytes read and written by a copy.
    copy_gb_per_s: f64,
    /// The first as a share of the second.
    share: f64,
}

/// Measures and prints a JSON line.
///
/// # Errors
/// [`BenchError`].
pub fn run(flags: &AttentionFlags) -> Result<(), BenchError> {
    flags.device.parse::<Device>()?.select()?;
    // On a thread of its own, whose streams end with it: those of the main thread would outlive the
    // driver.
    let measured = thread::scope(|scope| scope.spawn(|| measure(flags)).join());
    let row = measured.expect("a measurement does not panic")?;
    let text = serde_json::to_string(&row).expect("plain numbers and strings");
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

fn measure(flags: &AttentionFlags) -> Result<Row, EngineError> {
    let (requests, context) = (flags.requests.cast_signed(), flags.context.cast_signed());
    let layers = Layers::new(requests, context)?;
    let attention = layers.seconds()?;
    let bytes = 2 * i64::from(requests * context) * i64::from(2 * NUM_KV_HEADS * HEAD_DIM);
    let copy_gb_per_s = copy_gb_per_s()?;
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 bytes")]
    let attention_gb_per_s = bytes as f64 / attention / 1e9;
    Ok(Row {
        program: "metald bench attention",
        requests,
        context,
        attention_us: attention * 1e6,
        attention_gb_per_s,
        copy_gb_per_s,
        share: attention_gb_per_s / copy_gb_per_s,
    })
}

/// Caches and queries of some layers, in bfloat16.
struct Layers {
    caches: Vec<[Array; 2]>,
    query: Array,
    metadata: AttentionMetadata,
    params: AttentionParams,
}

impl Layers {
    fn new(requests: i32, context: i32) -> Result<Self, EngineError> {
        let row_blocks = (context + BLOCK_SIZE - 1) / BLOCK_SIZE;
        let num_blocks = requests * row_blocks;
        let random = |shape: &[i32]| -> Result<Array, EngineError> {
            let floats = random::uniform::<_, f32>(-1.0, 1.0, shape, None)?;
            let array = floats.as_dtype(Dtype::Bfloat16)?;
            eval([&array])?;
            Ok(array)
        };
        let cache = [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM];
        let caches = (0..LAYERS).map(|_| Ok([random(&cache)?, random(&cache)?]));
        // Blocks of different requests interleave, as they do under a scheduler.
        let table: Vec<i32> = (0..requests)
            .flat_map(|request| (0..row_blocks).map(move |block| block * requests + request))
            .collect();
        let starts: Vec<i32> = (0..=requests).collect();
        let lens = vec![context; starts.len() - 1];
        Ok(Self {
            caches: caches.collect::<Result<_, EngineError>>()?,
            query: random(&[requests, NUM_HEADS, HEAD_DIM])?,
            metadata: AttentionMetadata {
                block_table: upload(&table, &[requests, row_blocks])?,
                query_start_loc: upload(&starts, &[requests + 1])?,
                seq_lens: upload(&lens, &[requests])?,
            },
            params: AttentionParams {
                scale: 0.088,
                sliding_window: None,
                soft_cap: None,
                sinks: None,
            },
        })
    }

    /// Seconds that one layer takes: median of five measurements.
    fn seconds(&self) -> Result<f64, EngineError> {
        median_seconds(|| {
            (0..TURNS)
                .flat_map(|_| &self.caches)
                .map(|[key, value]| {
                    Ok(paged_attention(
                        &self.query,
                        key,
                        value,
                        &self.metadata,
                        &self.params,
                    )?)
                })
                .collect()
        })
    }
}

/// Bytes that a copy of two gigabytes reads and writes in a nanosecond.
fn copy_gb_per_s() -> Result<f64, EngineError> {
    let half = mlx_rs::ops::ones::<f32>(&[1 << 28])?;
    eval([&half])?;
    let seconds = median_seconds(|| Ok(vec![concatenate(&[&half, &half], 0)?]))?;
    Ok(f64::from(1 << 29) * 8.0 / seconds / 1e9)
}

/// Seconds that an array of `build` takes to be computed: median of five measurements after one.
fn median_seconds(build: impl Fn() -> Result<Vec<Array>, EngineError>) -> Result<f64, EngineError> {
    let mut seconds = Vec::new();
    for _ in 0..6 {
        let arrays = build()?;
        let begin = Instant::now();
        eval(&arrays)?;
        #[expect(clippy::cast_precision_loss, reason = "a few arrays")]
        seconds.push(begin.elapsed().as_secs_f64() / arrays.len() as f64);
    }
    Ok(median(&seconds[1..]))
}
