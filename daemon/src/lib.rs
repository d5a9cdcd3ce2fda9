//! `metald`: the daemon that owns the GPU, the paged KV cache and MLX model execution.
//!
//! # The way of a step
//!
//! | | stage | module | what it does |
//! |-|-------|--------|--------------|
//! | 1 | socket | [`socket`] | ZeroMQ's protocol: bytes in, bytes out |
//! | 2 | decode | [`dispatch`] | bytes to a request; control here, steps to the engine's queue |
//! | 3 | session | [`session`] | what is known of a frontend; a step is applied and checked |
//! | ★ | engine | [`engine`] | the thread that does 3 to 6. **Read this first** |
//! | 4 | batch | [`batch`] | the steps of many sessions, flat, for one forward |
//! | 5 | model | [`models`] | one file per family; [`layers`] is what they share |
//! | 6 | sample | [`sampler`] | logits to token ids |
//! | 7 | reply | [`reply`] | token ids to each frontend's result |
//!
//! Life and death: [`claim`] (whose the endpoint is), [`leave`] (the end), [`watchdog`] (a step that
//! does not end).
//!
//! Around it: [`kv_cache`] (paged cache and the wall between frontends), [`device`] (CPU or GPU,
//! memory budget), [`endpoint`] (the private socket, or TCP with a token), [`outbox`] (the way to
//! one frontend), [`config`], [`limits`], [`server`] (`metald serve`), [`start`] (`metald start`), [`status`] (`metald status`), [`drain`]
//! (`metald drain`), [`generate`]
//! (`metald generate`), [`bench`] (`metald bench`), [`telemetry`].

pub mod socket;

pub mod dispatch;

pub mod session;

pub mod engine;

pub mod batch;

pub mod models;

pub mod layers;

pub mod sampler;

pub mod reply;

pub mod claim;
pub mod leave;
pub mod watchdog;

pub mod bench;
pub mod config;
pub mod device;
pub mod drain;
pub mod endpoint;
pub mod generate;
pub mod kv_cache;
pub mod limits;
pub mod outbox;
pub mod server;
pub mod start;
pub mod status;
pub mod telemetry;
