//! What every decoder-only model does around its blocks: embedding, norm and head.

use metal_rpc_kernels as kernels;
use metal_rpc_protocol::KvCacheSpec;
use mlx_rs::Array;
use mlx_rs::ops::tanh;

use super::{
    Dtype, ForwardInput, LayerInput, Model, ModelArgs, ModelError, checkpoint::Checkpoint,
    weights::Weights,
};
use crate::{
    kv_cache::KvCache,
    layers::{Attention, Block, DecoderBlock, DenseArgs, Embedding, Linear, MoeArgs, Norm, Stream},
};

/// What a family does around its blocks, beside the dimensions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DecoderArgs {
    /// Factor of the embeddings.
    pub(super) embedding_scale: Option<f32>,
    /// The head has a bias.
    pub(super) head_bias: bool,
    /// Factor of the logits.
    pub(super) logit_scale: Option<f32>,
    /// Logits become `soft_cap * tanh(logit / soft_cap)`.
    pub(super) logit_soft_cap: Option<f32>,
}

/// Drops what the model computes itself: rope frequencies, and the head where it is the embedding.
pub(super) fn sanitize(args: &ModelArgs, checkpoint: &mut Checkpoint) {
    checkpoint.tensors.retain(|name, _| {
        let tied_head = args.tie_word_embeddings && name.starts_with("lm_head.");
        !tied_head && !name.ends_with(".rotary_emb.inv_freq")
    });
}

/// A decoder-only model.
#[derive(Debug)]
pub(super) struct Decoder {
    args: ModelArgs,
    decoder_args: DecoderArgs,
    embedding: Embedding,
    blocks: Vec<Box<dyn DecoderBlock>>,
    norm: Norm,
    /// Absent where the head is the embedding.
    head: Option<Linear>,
    kv_dtype: Dtype,
    weights_bytes: u64,
}

impl Decoder {
    /// Loads a model of Llama's tensor names whose blocks have a plain MLP, as `block` describes
    /// them by index.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(super) fn dense<'a>(
        args: &ModelArgs,
        decoder_args: DecoderArgs,
        weights: Weights<'_>,
        block: impl Fn(usize) -> DenseArgs<'a>,
    ) -> Result<Box<dyn Model>, ModelError> {
        Self::load(args, decoder_args, weights, |layer, name, weights| {
            Block::dense(name, &block(layer), weights)
        })
    }

    /// Loads a model of Llama's tensor names whose blocks have experts, as `block` describes them
    /// by index, or where it gives none a plain MLP.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(super) fn sparse<'a>(
        args: &ModelArgs,
        decoder_args: DecoderArgs,
        weights: Weights<'_>,
        block: impl Fn(usize) -> (DenseArgs<'a>, Option<MoeArgs>),
    ) -> Result<Box<dyn Model>, ModelError> {
        Self::load(args, decoder_args, weights, |layer, name, weights| {
            let (dense, moe) = block(layer);
            Block::sparse(name, &dense, moe.as_ref(), weights)
        })
    }

    /// Loads a model of Llama's tensor names whose blocks `block` loads, by index and name.
    ///
    /// # Errors
    /// If a tensor is missing, of another shape or format, or cannot be read.
    pub(super) fn load<B: DecoderBlock + 'static>(
        args: &ModelArgs,
        decoder_args: DecoderArgs,
        mut weights: Weights<'_>,
        block: impl Fn(usize, &str, &mut Weights<'_>) -> Result<B, ModelError>,
    ) -> Result<Box<dyn Model>, ModelError> {
        let (vocab_size, hidden_size) = (args.vocab_size, args.hidden_size);
        let embedding =
            Embedding::load("model.embed_tokens", vocab_size, hidden_size, &mut weights)?;
        let head = if args.tie_word_embeddings {
            None
        } else {
            let parts = [("lm_head".to_owned(), vocab_size)];
            let bias = decoder_args.head_bias;
            Some(Linear::load(&parts, hidden_size, bias, &mut weights)?)
        };
        let blocks = (0..args.num_layers)
            .map(|index| {
                let block = block(index, &format!("model.layers.{index}"), &mut weights)?;
                Ok(Box::new(block) as Box<dyn DecoderBlock>)
            })
            .collect::<Result<_, ModelError>>()?;
        let norm = Norm::load("model.norm", hidden_size, args.norm, &mut weights)?;
        Ok(Box::new(Self {
            args: args.clone(),
            decoder_args,
            embedding,
            blocks,
            norm,
            head,
            kv_dtype: weights.dtype(),
            weights_bytes: weights.finish(),
        }))
    }
}

impl Model for Decoder {
    fn args(&self) -> &ModelArgs {
        &self.args
    }

    fn kv_cache_specs(&self) -> Vec<KvCacheSpec> {
        let attentions = self.blocks.iter().map(|block| block.attention());
        let spec = |(index, attention): (usize, &Attention)| KvCacheSpec {
            layer_name: format!("model.layers.{index}.self_attn.attn"),
            num_kv_heads: attention.num_kv_heads().unsigned_abs(),
            head_dim: attention.head_dim().unsigned_abs(),
            dtype: self.kv_dtype.name().to_owned(),
            sliding_window: attention.sliding_window(),
        };
        attentions.enumerate().map(spec).collect()
    }

    fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    fn forward(&self, input: &ForwardInput, kv_cache: &mut KvCache) -> Result<Array, ModelError> {
        assert!(kv_cache.num_layers() == self.blocks.len());
        let mut hidden = self.embedding.forward(&input.token_ids)?;
        if let Some(scale) = self.decoder_args.embedding_scale {
            hidden = kernels::scale(&hidden, scale)?;
        }
        let mut stream = Stream::new(hidden);
        for (index, block) in self.blocks.iter().enumerate() {
            let (cache, group) = kv_cache.layer(index);
            let input = LayerInput {
                positions: &input.positions,
                group: &input.groups[group],
                cache,
            };
            block.forward(&mut stream, input)?;
        }
        stream.normed(&self.norm)
    }

    fn logits(&self, hidden: &Array) -> Result<Array, ModelError> {
        let hidden = match self.decoder_args.logit_scale {
            Some(scale) => &kernels::scale(hidden, scale)?,
            None => hidden,
        };
        let logits = match &self.head {
            Some(head) => head.forward(hidden)?,
            None => self.embedding.as_linear(hidden)?,
        };
        match self.decoder_args.logit_soft_cap {
            Some(cap) => {
                let logits = logits.as_dtype(mlx_rs::Dtype::Float32)?;
                let capped = tanh(&kernels::scale(&logits, 1.0 / cap)?)?;
                Ok(kernels::scale(&capped, cap)?)
            }
            None => Ok(logits),
        }
    }
}
