//! The Cargo configuration that stands in for mlx-sys's build script.
//!
//! Cargo lets a configuration name what the build script of a crate with a `links` key would have
//! said, and then neither builds nor runs that script. mlx-sys stays the registry's crate,
//! `Cargo.toml` and `Cargo.lock` are the same on every platform.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::mlx::{Backend, TARGET, VERSION};

const FILE: &str = ".cargo/mlx-linux.toml";

/// The backend that the checkout at `root` is configured for, `cpu` when it is not configured.
pub fn backend(root: &Path) -> Backend<'static> {
    match fs::read_to_string(root.join(FILE)) {
        Ok(text) if text.starts_with(&heading("cuda-13")) => "cuda-13",
        _ => "cpu",
    }
}

/// Writes `.cargo/mlx-linux.toml` in the checkout at `root`, unless it already says the same:
/// Cargo builds everything anew when the configuration changes.
///
/// # Errors
/// A path cannot be written in the configuration's format, or the file cannot be written.
pub fn write(root: &Path, backend: Backend<'_>, prefix: &Path, mlx_c: &Path) -> Result<()> {
    let path = root.join(FILE);
    let text = text(backend, plain(prefix)?, plain(mlx_c)?);
    if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The first line of the file, from which [`backend`] is read back.
fn heading(backend: Backend<'_>) -> String {
    format!("# Written by `cargo xtask mlx {backend}`.")
}

/// `rustc-env` feeds mlx-sys's `include!(concat!(env!("OUT_DIR"), "/bindings.rs"))`. The last three
/// keys reach the build script of our kernels as `DEP_MLX_*`, as upstream documents them.
fn text(backend: Backend<'_>, prefix: &str, mlx_c: &str) -> String {
    let heading = heading(backend);
    // The CUDA libraries that libmlx.so needs come with the machine that runs the program.
    let undefined = match backend {
        "cpu" => "",
        _ => ",--allow-shlib-undefined",
    };
    format!(
        r#"{heading}
[target.{TARGET}]
rustflags = ["-Clink-arg=-Wl,-rpath,$ORIGIN,-rpath,{prefix}/mlx/lib{undefined}"]

[target.{TARGET}.mlx]
rustc-link-search = ["native={prefix}/lib", "native={prefix}/mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = {{ OUT_DIR = "{prefix}/bindings" }}
include = "{prefix}/mlx/include:{mlx_c}"
defines = ""
version = "{VERSION}"
"#
    )
}

/// `path` as it stands in the configuration: quotes would end a string, a colon a list's entry,
/// a comma the linker's argument.
fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().context("path is not UTF-8")?;
    ensure!(
        !text.contains(['"', '\\', ':', ',']),
        "path holds one of \" \\ : , and Cargo's configuration cannot name it: {text}"
    );
    Ok(text)
}
