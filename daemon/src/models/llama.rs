//! Llama 2, 3 and 3.1, and what shares their architecture: SmolLM2, Code Llama, Yi, TinyLlama.
//!
//! Pre-norm blocks of grouped-query attention with rope and a gated SiLU MLP.
//!
//! # Source
//! transformers 5.20 `models/llama/modeling_llama.py`; mlx-lm `models/llama.py`.

use std::path::Path;

use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::Array;

use super::{
    Config, Dtype, Family, ForwardInput, LoadOptions, Model, ModelArgs, ModelError,
    checkpoint::Checkpoint, weights::Weights,
};
use crate::{
    kv_cache::{KvCache, LayerCache},
    layers::{Attention, AttentionArgs, Embedding, Linear, Mlp, MlpArgs, RmsNorm},
};

/// How the registry knows this family.
pub const FAMILY: Family = Family {
    model_type: "llama",
    // The second is how the first conversions of Llama spelled it.
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    load,
};

/// Loads a checkpoint with Llama's keys and tensor names.
pub(super) fn load(
    config: &Config,
    folder: &Path,
    options: LoadOptions<'_>,
) -> Result<Box<dyn Model>, ModelError> {
    let args = ModelArgs::from_config(config)?;
    let mut checkpoint = Checkpoint::open(folder)?;
    sanitize(&args, &mut checkpoint);
    let weights = Weights::new(checkpoint, options)?;
    Ok(Box::new(Llama::load(args, weights)?))
}

/// Drops what the model computes itself: rope frequencies, and the head where it is the embedding.
fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    checkpoint.tensors.retain(|name, _| {
        let tied_head = args.tie_word_embeddings && name == "lm_head.weight";
        !tied_head && !name.ends_with(".rotary_emb.inv_freq")
    });
}

#[derive(Debug)]
struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn load(args: &ModelArgs, prefix: &str, weights: &mut Weights<'_>) -> Result<Self, ModelError> {
        let norm = |name: &str, weights: &mut Weights<'_>| {
            RmsNorm::load(
                &format!("{prefix}.{name}"),
                args.hidden_size,
                args.rms_norm_eps,
                weights,
            )
        };
        Ok(Self {
            input_norm: norm("input_layernorm", weights)?,
            attention: Attention::load(
                &format!("{prefix}.self_attn"),
                &AttentionArgs {
                    hidden_size: args.hidden_size,
                    num_heads: args.num_heads,
                    num_kv_heads: args.num_kv_heads,
                    head_dim: args.head_dim,
                    bias: args.attention_bias,
                    rope: &args.rope,
                },
                weights,
            )?,
            post_attention_norm: norm("post_attention_layernorm", weights)?,
            mlp: Mlp::load(
                &format!("{prefix}.mlp"),
                &MlpArgs {
                    hidden_size: args.hidden_size,
                    intermediate_size: args.intermediate_size,
                    bias: args.mlp_bias,
                },
                weights,
            )?,
        })
    }

    fn forward(
        &self,
        hidden: &Array,
        input: &ForwardInput,
        cache: &mut LayerCache,
    ) -> Result<Array, ModelError> {
        let normed = self.input_norm.forward(hidden)?;
        let hidden = hidden.add(self.attention.forward(&normed, input, cache)?)?;
        let normed = self.post_attention_norm.forward(&hidden)?;
        Ok(hidden.add(self.mlp.forward(&normed)?)?)
    }
}

/// A model of this family.
#[derive(Debug)]
struct Llama {
    args: ModelArgs,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// Absent where the head is the embedding.
    head: Option<Linear>,
    kv_dtype: Dtype,
    weights_bytes: u64,
}

impl Llama {
    fn load(args: ModelArgs, mut weights: Weights<'_>) -> Result<Self, ModelError> {
        let (vocab_size, hidden_size) = (args.vocab_size, args.hidden_size);
        let embedding =
            Embedding::load("model.embed_tokens", vocab_size, hidden_size, &mut weights)?;
        // The large ones first: each is twice in memory while it is handed to MLX.
        let head = if args.tie_word_embeddings {
            None
        } else {
            let parts = [("lm_head".to_owned(), vocab_size)];
            Some(Linear::load(&parts, hidden_size, false, &mut weights)?)
        };
        let blocks = (0..args.num_layers)
            .map(|index| Block::load(&args, &format!("model.layers.{index}"), &mut weights))
            .collect::<Result<_, _>>()?;
        let norm = RmsNorm::load("model.norm", hidden_size, args.rms_norm_eps, &mut weights)?;
        Ok(Self {
            args,
            embedding,
            blocks,
            norm,
            head,
            kv_dtype: weights.dtype(),
            weights_bytes: weights.finish(),
        })
    }
}

impl Model for Llama {
    fn args(&self) -> &ModelArgs {
        &self.args
    }

    fn kv_cache_specs(&self) -> Vec<KvCacheSpec> {
        (0..self.args.num_layers)
            .map(|index| KvCacheSpec {
                layer_name: format!("model.layers.{index}.self_attn.attn"),
                num_kv_heads: self.args.num_kv_heads.unsigned_abs(),
                head_dim: self.args.head_dim.unsigned_abs(),
                dtype: self.kv_dtype.name().to_owned(),
                sliding_window: None,
            })
            .collect()
    }

    fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    fn forward(&self, input: &ForwardInput, kv_cache: &mut KvCache) -> Result<Array, ModelError> {
        assert!(kv_cache.layers.len() == self.blocks.len());
        let mut hidden = self.embedding.forward(&input.token_ids)?;
        for (block, cache) in self.blocks.iter().zip(&mut kv_cache.layers) {
            hidden = block.forward(&hidden, input, cache)?;
        }
        self.norm.forward(&hidden)
    }

    fn logits(&self, hidden: &Array) -> Result<Array, ModelError> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden)?,
            None => self.embedding.as_linear(hidden)?,
        };
        Ok(logits.as_dtype(mlx_rs::Dtype::Float32)?)
    }
}
