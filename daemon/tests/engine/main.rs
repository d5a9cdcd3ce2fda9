//! The engine through its messages: real models, real kernels, no socket.
//!
//! Each test drives the engine as vLLM's scheduler would: it opens requests, gives them blocks, runs
//! their prompts whole or in chunks, and reads one token a step.

mod failed;
mod groups;
mod machine;
mod memory;
mod refused;
mod scores;
mod support;
mod tokens;
mod turns;
