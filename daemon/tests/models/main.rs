//! The model families: what they load, what they refuse, and what they compute.

mod checkpoint;
mod families;
mod formats;
mod load;
mod logits;
mod refused;
mod support;
