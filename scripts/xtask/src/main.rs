//! `cargo xtask mlx [cpu|cuda-13]`: prepares MLX for this checkout. Without a backend it keeps the
//! one that the checkout has, and starts with `cpu`.
//!
//! # Layout
//! - `main.rs`: the command line
//! - `mlx.rs`: the steps of the preparation, and what makes it repeatable
//! - `mlx_c.rs`: MLX's C interface, compiled from the sources inside the mlx-sys crate
//! - `wheel.rs`: MLX itself and libclang, from Python wheels
//! - `cargo_config.rs`: the Cargo configuration that hands the result to mlx-sys
//! - `command.rs`: running other programs
//! - `bin/mlx_bindings.rs`: the Rust bindings, a binary of its own because bindgen is slow to build

mod cargo_config;
mod command;
mod mlx;
mod mlx_c;
mod wheel;

use std::env;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask mlx [cpu|cuda-13]";

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["mlx"] => mlx::prepare(None),
        ["mlx", backend @ ("cpu" | "cuda-13")] => mlx::prepare(Some(backend)),
        _ => bail!(USAGE),
    }
}
