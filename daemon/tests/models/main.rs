//! The model families: what they load, what they refuse, and what they compute.

mod checkpoint;
mod families;
mod formats;
mod gguf;
mod header;
mod layouts;
mod load;
mod logits;
mod made;
#[cfg(target_os = "linux")]
mod memory;
mod refused;
mod support;
