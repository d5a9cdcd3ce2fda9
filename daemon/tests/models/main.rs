//! The model families: what they load, and what they compute.

mod load;
mod logits;
mod support;
