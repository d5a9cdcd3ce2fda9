//! Makes mlx-sys usable on Linux.
//!
//! The build script of mlx-sys supports Apple's platforms alone. Here MLX itself comes from its
//! Python wheel, its C interface from the sources inside the mlx-sys crate, and Cargo's
//! build-script override hands both to the unmodified crate.
//!
//! # Invariants
//! - A prefix in the cache is complete: it is built beside its place and renamed into it.
//! - A prefix's name holds a hash of all its inputs, so nothing in it ever changes.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{cargo_config, command::run, mlx_c, wheel};

/// The MLX that mlx-c in mlx-sys 0.7.0 is written against; no other links with it.
pub const VERSION: &str = "0.32.2";

/// The one Linux target of this recipe.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The end of the wheel's name, `mlx-{backend}`: `cpu` or `cuda-13`.
pub type Backend<'a> = &'a str;

const LIBCLANG: &str = "libclang==18.1.1";

/// Prepares MLX for this checkout: at once when nothing changed, else from the cache or anew.
/// `None` keeps the checkout's backend.
///
/// # Errors
/// A tool is missing, a download or a compilation fails. Nothing half-done stays in use.
pub fn prepare(backend: Option<Backend<'_>>) -> Result<()> {
    if cfg!(target_os = "macos") {
        eprintln!("mlx: nothing to prepare, mlx-sys builds MLX itself on macOS");
        return Ok(());
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "MLX is prepared for {TARGET} and macOS only"
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("the workspace lies two folders above this crate")?;
    let backend = backend.unwrap_or_else(|| cargo_config::backend(root));
    let compat = Path::new(env!("CARGO_MANIFEST_DIR")).join("mlx-compat");
    let mlx_c = mlx_c::sources(root, VERSION)?;
    let cache = cache_dir()?;
    let key = key(backend, &mlx_c, &compat)?;
    let prefix = cache.join(format!("{VERSION}-{backend}-{key:016x}"));
    if !prefix.is_dir() {
        eprintln!(
            "mlx: building {} (once a machine, about two minutes)",
            prefix.display()
        );
        let staging = cache.join(format!("staging-{}", process::id()));
        build(backend, &mlx_c, &compat, &staging)?;
        // Someone else may have finished the same prefix meanwhile; theirs is as good.
        if fs::rename(&staging, &prefix).is_err() {
            ensure!(
                prefix.is_dir(),
                "cannot move {} into place",
                staging.display()
            );
            fs::remove_dir_all(&staging)?;
        }
    }
    cargo_config::write(root, backend, &prefix, &mlx_c)?;
    eprintln!("mlx: {VERSION} ({backend}) in {}", prefix.display());
    Ok(())
}

/// `$XDG_CACHE_HOME/metal-rpc/mlx`, or the same under `~/.cache`.
fn cache_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("metal-rpc").join("mlx"))
}

/// A hash of everything that a prefix is made of, this recipe's own text included.
fn key(backend: Backend<'_>, mlx_c: &Path, compat: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    (backend, VERSION, LIBCLANG, mlx_c).hash(&mut hasher);
    run(Command::new("g++").arg("--version"))
        .context("g++ is needed: apt install g++")?
        .hash(&mut hasher);
    for file in ["mlx_c.h", "mach_time.c"] {
        fs::read(compat.join(file))?.hash(&mut hasher);
    }
    [
        include_str!("mlx_c.rs"),
        include_str!("bin/mlx_bindings.rs"),
    ]
    .hash(&mut hasher);
    Ok(hasher.finish())
}

/// Fills `prefix`: `mlx/` (the wheel's headers and library), `lib/libmlxc.a`, `bindings/bindings.rs`.
fn build(backend: Backend<'_>, mlx_c: &Path, compat: &Path, prefix: &Path) -> Result<()> {
    if prefix.exists() {
        fs::remove_dir_all(prefix)?;
    }
    fs::create_dir_all(prefix)?;
    wheel::unpack(&format!("mlx-{backend}=={VERSION}"), prefix)?;
    mlx_c::compile(mlx_c, compat, prefix)?;
    bindings(mlx_c, compat, prefix)
}

/// Makes the Rust bindings with the wheel of libclang, which brings no headers of its own: gcc's serve.
fn bindings(mlx_c: &Path, compat: &Path, prefix: &Path) -> Result<()> {
    let libclang = prefix.join("libclang");
    fs::create_dir_all(&libclang)?;
    fs::create_dir_all(prefix.join("bindings"))?;
    wheel::unpack(LIBCLANG, &libclang)?;
    eprintln!("  making the Rust bindings");
    let gcc_headers = run(Command::new("gcc").arg("-print-file-name=include"))?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .args(["run", "--profile", "xtask", "--package", "xtask"])
        .args(["--features", "bindings", "--bin", "mlx-bindings", "--"])
        .args([
            mlx_c,
            &compat.join("mlx_c.h"),
            Path::new(gcc_headers.trim()),
        ])
        .arg(prefix.join("bindings/bindings.rs"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env(
            "LIBCLANG_PATH",
            libclang.join("libclang-18.1.1.data/platlib/clang/native"),
        )
        // Cargo's own progress: bindgen takes half a minute to build.
        .stderr(Stdio::inherit()))?;
    fs::remove_dir_all(&libclang)?;
    Ok(())
}
