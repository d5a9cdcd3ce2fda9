//! `metald`: the daemon that owns the GPU, the paged KV cache and MLX model execution.

pub mod kv_cache;

pub mod layers;

pub mod models;

pub mod sampler;
