//! A block of a decoder: attention and feed-forward, each around the residual stream.

use std::fmt::Debug;

use metal_rpc_kernels as kernels;
use mlx_rs::Array;

use super::{Attention, AttentionArgs, Mlp, MlpArgs, Norm, NormArgs};
use crate::models::{LayerInput, ModelError, weights::Weights};

/// The part of a block that treats each token by itself.
pub trait FeedForward: Debug + Send {
    /// Shape and dtype of `x`, `[num_tokens, hidden_size]`.
    ///
    /// # Errors
    /// If the shape does not fit.
    fn forward(&self, x: &Array) -> Result<Array, ModelError>;
}

/// Where a block normalises, and what its checkpoints call these norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// What goes into each half: Llama and most others.
    Before,
    /// What comes out of each half: OLMo 2.
    After,
    /// Both: Gemma 2 and 3.
    Around,
}

impl NormPlacement {
    /// Before and after attention, before and after the feed-forward.
    fn names(self) -> [Option<&'static str>; 4] {
        let after_attention = Some("post_attention_layernorm");
        match self {
            Self::Before => [Some("input_layernorm"), None, after_attention, None],
            Self::After => [
                None,
                after_attention,
                None,
                Some("post_feedforward_layernorm"),
            ],
            Self::Around => [
                Some("input_layernorm"),
                after_attention,
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ],
        }
    }
}

/// What a block does around its halves.
#[derive(Clone, Copy, Debug)]
pub struct ResidualArgs {
    /// Width of the residual stream.
    pub hidden_size: i32,
    /// By what formula it normalises.
    pub norm: NormArgs,
    /// Where it normalises.
    pub placement: NormPlacement,
    /// Factor of what each half adds to the stream.
    pub multiplier: Option<f32>,
}

/// The residual stream of a forward.
///
/// What a half adds to it is added by the norm that comes next, in the same node.
#[derive(Debug)]
pub struct Stream {
    hidden: Array,
    /// What is still to be added to `hidden`.
    addend: Option<Array>,
}

impl Stream {
    /// Begins with the embeddings, `[num_tokens, hidden_size]`.
    #[must_use]
    pub fn new(hidden: Array) -> Self {
        Self {
            hidden,
            addend: None,
        }
    }

    /// What it holds, normalised.
    ///
    /// # Errors
    /// If the norm is of another width.
    pub fn normed(&mut self, norm: &Norm) -> Result<Array, ModelError> {
        let Some(addend) = self.addend.take() else {
            return norm.forward(&self.hidden);
        };
        let (normed, sum) = norm.forward_sum(&addend, &self.hidden)?;
        self.hidden = sum;
        Ok(normed)
    }

    /// What it holds.
    ///
    /// # Errors
    /// If MLX refuses.
    pub fn hidden(&mut self) -> Result<&Array, ModelError> {
        if let Some(addend) = self.addend.take() {
            self.hidden = self.hidden.add(addend)?;
        }
        Ok(&self.hidden)
    }

    /// Adds the result of a half.
    ///
    /// # Errors
    /// If MLX refuses.
    pub fn add(&mut self, addend: Array) -> Result<(), ModelError> {
        self.hidden()?;
        self.addend = Some(addend);
        Ok(())
    }
}

/// `x + multiplier * after(half(before(x)))`.
#[derive(Debug)]
struct Residual {
    before: Option<Norm>,
    after: Option<Norm>,
    multiplier: Option<f32>,
}

impl Residual {
    fn forward(
        &self,
        stream: &mut Stream,
        half: impl FnOnce(&Array) -> Result<Array, ModelError>,
    ) -> Result<(), ModelError> {
        let mut y = match &self.before {
            Some(norm) => half(&stream.normed(norm)?)?,
            None => half(stream.hidden()?)?,
        };
        if let Some(norm) = &self.after {
            y = norm.forward(&y)?;
        }
        if let Some(multiplier) = self.multiplier {
            y = kernels::scale(&y, multiplier)?;
        }
        stream.add(y)
    }
}

/// Attention, then a feed-forward.
#[derive(Debug)]
pub struct Block<F> {
    around_attention: Residual,
    attention: Attention,
    around_feed_forward: Residual,
    feed_forward: F,
}

impl<F: FeedForward> Block<F> {
    /// Joins two halves with the norms of the block `name`.
    ///
    /// # Errors
    /// As [`Norm::load`].
    pub fn load(
        name: &str,
        args: &ResidualArgs,
        (attention, feed_forward): (Attention, F),
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let mut norm = |kind: Option<&str>| {
            kind.map(|kind| {
                Norm::load(
                    &format!("{name}.{kind}"),
                    args.hidden_size,
                    args.norm,
                    weights,
                )
            })
            .transpose()
        };
        let [
            before_attention,
            after_attention,
            before_feed_forward,
            after_feed_forward,
        ] = args.placement.names();
        Ok(Self {
            around_attention: Residual {
                before: norm(before_attention)?,
                after: norm(after_attention)?,
                multiplier: args.multiplier,
            },
            attention,
            around_feed_forward: Residual {
                before: norm(before_feed_forward)?,
                after: norm(after_feed_forward)?,
                multiplier: args.multiplier,
            },
            feed_forward,
        })
    }
}

/// The three parts of a block with a plain MLP.
#[derive(Clone, Debug)]
pub struct DenseArgs<'a> {
    /// `self_attn`.
    pub attention: AttentionArgs<'a>,
    /// `mlp`.
    pub mlp: MlpArgs,
    /// What is around them.
    pub residual: ResidualArgs,
}

impl Block<Mlp> {
    /// Loads the block `name` with its attention and its MLP.
    ///
    /// # Errors
    /// As [`Linear::load`](super::Linear::load).
    pub fn dense(
        name: &str,
        args: &DenseArgs<'_>,
        weights: &mut Weights<'_>,
    ) -> Result<Self, ModelError> {
        let attention = Attention::load(&format!("{name}.self_attn"), &args.attention, weights)?;
        let mlp = Mlp::load(&format!("{name}.mlp"), &args.mlp, weights)?;
        Self::load(name, &args.residual, (attention, mlp), weights)
    }
}

/// A block, whatever it is made of.
pub trait DecoderBlock: Debug + Send {
    /// Its attention, which says what its cache looks like.
    fn attention(&self) -> &Attention;

    /// Reads the stream and adds to it.
    ///
    /// # Errors
    /// If the shapes of `stream` and `input` do not fit each other.
    fn forward(&self, stream: &mut Stream, input: LayerInput<'_>) -> Result<(), ModelError>;
}

impl<F: FeedForward> DecoderBlock for Block<F> {
    fn attention(&self) -> &Attention {
        &self.attention
    }

    fn forward(&self, stream: &mut Stream, input: LayerInput<'_>) -> Result<(), ModelError> {
        let attend = |x: &Array| self.attention.forward(x, input);
        self.around_attention.forward(stream, attend)?;
        let feed = |x: &Array| self.feed_forward.forward(x);
        self.around_feed_forward.forward(stream, feed)
    }
}
