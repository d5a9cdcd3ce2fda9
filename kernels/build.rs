//! Compiles our MLX primitives against the headers that mlx-sys publishes as `DEP_MLX_*`:
//! its own build script on macOS, `cargo xtask mlx` on Linux.

use std::env;

const SOURCES: [&str; 2] = ["primitive/host_kernel.cpp", "primitive/memory.cpp"];

fn main() {
    println!("cargo::rerun-if-changed=primitive");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .files(SOURCES)
        .warnings(true)
        .extra_warnings(true)
        .opt_level(2);
    let include = env::var_os("DEP_MLX_INCLUDE")
        .expect("mlx-sys published no headers: on Linux run `cargo xtask mlx` first");
    for dir in env::split_paths(&include) {
        build.flag("-isystem").flag(dir);
    }
    for define in env::var("DEP_MLX_DEFINES")
        .unwrap_or_default()
        .split_whitespace()
    {
        match define.split_once('=') {
            Some((name, value)) => build.define(name, value),
            None => build.define(define, None),
        };
    }
    build.compile("metal_rpc_kernels");
}
