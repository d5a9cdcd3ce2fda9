//! `mlx-bindings MLX_C COMPAT_HEADER COMPILER_HEADERS OUTPUT`: Rust bindings to mlx-c.
//!
//! Called by `cargo xtask mlx`. The options are those of upstream's `src/bindgen_config.rs`, so
//! that the unmodified mlx-rs compiles against the result. libclang is loaded from `LIBCLANG_PATH`.

use std::{env, fs, path::Path};

use anyhow::{Context, Result, bail};
use bindgen::{Builder, Formatter};

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [mlx_c, compat_header, compiler_headers, output] = &args[..] else {
        bail!("usage: mlx-bindings MLX_C COMPAT_HEADER COMPILER_HEADERS OUTPUT");
    };
    let mut builder = Builder::default()
        .rust_target("1.73.0".parse().ok().context("bindgen knows Rust 1.73")?)
        .clang_args([format!("-I{mlx_c}"), format!("-isystem{compiler_headers}")])
        .clang_args(["-include", compat_header])
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .formatter(Formatter::None);
    for header in headers(&Path::new(mlx_c).join("mlx/c"))? {
        builder = builder.header(header);
    }
    builder.generate()?.write_to_file(output)?;
    Ok(())
}

/// The C headers in `dir`, sorted, so that the bindings do not depend on the file system's order.
fn headers(dir: &Path) -> Result<Vec<String>> {
    let mut headers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "h") {
            headers.push(path.to_str().context("path is not UTF-8")?.to_owned());
        }
    }
    headers.sort();
    Ok(headers)
}
