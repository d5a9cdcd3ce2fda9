//! `metald bench null`: a daemon whose models compute nothing, to measure what surrounds a model.
//!
//! Everything else is that of `metald serve`.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use metal_rpc_kernels::{delay, linear, rows};
use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::Array;

use super::BenchError;
use super::flags::NullFlags;
use crate::kv_cache::KvCache;
use crate::models::{ForwardInput, LoadOptions, Loader, Model, ModelArgs, ModelError, args_of};
use crate::{server, telemetry};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// [`BenchError`].
pub fn run(flags: &NullFlags) -> Result<(), BenchError> {
    let mut config = flags.serve.resolve()?;
    let step_time = Duration::from_micros(flags.step_us);
    config.engine.models = Arc::new(NullModels { step_time });
    telemetry::init(config.debug, config.log_json);
    Ok(server::run(&config)?)
}

/// Makes models of the shape that a folder's `config.json` tells.
#[derive(Debug)]
struct NullModels {
    step_time: Duration,
}

impl Loader for NullModels {
    fn load(&self, folder: &Path, _: LoadOptions<'_>) -> Result<Box<dyn Model>, ModelError> {
        let args = args_of(folder)?;
        let zeros = (0..args.vocab_size).map(|_| 0.0_f32);
        let embedding = Array::from_iter(zeros, &[args.vocab_size, 1]);
        Ok(Box::new(NullModel {
            args,
            embedding,
            step_time: self.step_time,
            done_at: Mutex::new(Instant::now()),
        }))
    }
}

/// A model whose forward takes `step_time` of nobody's time, sampling included: a forward that is
/// submitted while another one runs is done `step_time` after that.
#[derive(Debug)]
struct NullModel {
    args: ModelArgs,
    /// `[vocab_size, 1]` f32 zeros, the head too.
    embedding: Array,
    step_time: Duration,
    /// When the last one that was submitted is done.
    done_at: Mutex<Instant>,
}

impl Model for NullModel {
    fn args(&self) -> &ModelArgs {
        &self.args
    }

    /// One layer of a usual size.
    fn kv_cache_specs(&self) -> Vec<KvCacheSpec> {
        vec![KvCacheSpec {
            layer_name: "model.layers.0.self_attn.attn".to_owned(),
            num_kv_heads: 8,
            head_dim: 128,
            dtype: "bfloat16".to_owned(),
            sliding_window: None,
        }]
    }

    fn weights_bytes(&self) -> u64 {
        0
    }

    /// Depends on the tokens, as a model does, so that steps follow each other.
    fn forward(&self, input: &ForwardInput, _: &mut KvCache) -> Result<Array, ModelError> {
        let hidden = rows(&self.embedding, &input.token_ids)?;
        if self.step_time.is_zero() {
            return Ok(hidden);
        }
        let mut done_at = self.done_at.lock().expect("nobody panics while holding it");
        *done_at = Instant::now().max(*done_at) + self.step_time;
        Ok(delay(&hidden, *done_at)?)
    }

    fn logits(&self, hidden: &Array) -> Result<Array, ModelError> {
        Ok(linear(hidden, &self.embedding, None)?)
    }
}
