//! mlx-c, MLX's C interface: found inside the mlx-sys crate, compiled and archived with g++.
//!
//! Upstream builds it with CMake together with MLX itself. The compiled MLX comes from a wheel
//! here, and mlx-c alone is a few dozen independent files.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{command::run, mlx::TARGET};

/// The mlx-c sources inside the copy of mlx-sys that Cargo uses.
///
/// # Errors
/// The workspace does not resolve, or its mlx-sys carries an mlx-c for another MLX than `version`.
pub fn sources(root: &Path, version: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let metadata = run(Command::new(cargo)
        .args([
            "metadata",
            "--format-version=1",
            "--filter-platform",
            TARGET,
        ])
        .current_dir(root))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "mlx-sys")
        .and_then(|package| package["manifest_path"].as_str())
        .context("mlx-sys is not in the dependency graph")?;
    let mlx_c = Path::new(manifest).with_file_name("src").join("mlx-c");
    let pins = fs::read_to_string(mlx_c.join("CMakeLists.txt"))?;
    ensure!(
        pins.contains(&format!("GIT_TAG v{version})")),
        "{} pins another MLX than {version}",
        mlx_c.display()
    );
    Ok(mlx_c)
}

/// Compiles `mlx_c` and our `compat` sources against the MLX in `prefix` into `lib/libmlxc.a` there.
///
/// # Errors
/// A source does not compile; the compiler's messages are in the error.
pub fn compile(mlx_c: &Path, compat: &Path, prefix: &Path) -> Result<()> {
    let objects_dir = prefix.join("objects");
    fs::create_dir_all(&objects_dir)?;
    fs::create_dir_all(prefix.join("lib"))?;

    let mut sources = files(&mlx_c.join("mlx/c"), "cpp")?;
    sources.push(compat.join("mach_time.c"));
    // Smallest first: the queue is taken from its end, so no long compilation starts last.
    sources.sort_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let count = sources.len();
    let (queue, started) = (Mutex::new(sources), AtomicUsize::new(0));
    let worker = || -> Result<()> {
        while let Some(source) = queue.lock().expect("no worker panics").pop() {
            let name = source.file_name().context("a source has a name")?;
            let number = started.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!("  compiling {number}/{count} {}", name.display());
            let object = objects_dir.join(name).with_extension("o");
            run(compiler(&source, mlx_c, compat, prefix)
                .arg("-o")
                .arg(object))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers = thread::available_parallelism().map_or(2, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    run(Command::new("ar")
        .arg("crs")
        .arg(prefix.join("lib/libmlxc.a"))
        .args(files(&objects_dir, "o")?))?;
    fs::remove_dir_all(&objects_dir)?;
    Ok(())
}

/// The compiler call for one source, up to its output file. MLX's own warnings are not ours to mend.
fn compiler(source: &Path, mlx_c: &Path, compat: &Path, prefix: &Path) -> Command {
    let is_c = source.extension() == Some(OsStr::new("c"));
    let mut command = Command::new(if is_c { "gcc" } else { "g++" });
    if !is_c {
        command
            .args(["-std=c++20", "-include"])
            .arg(compat.join("mlx_c.h"));
    }
    command
        .args(["-O2", "-fPIC", "-w", "-I"])
        .arg(mlx_c)
        .arg("-isystem")
        .arg(prefix.join("mlx/include"))
        .arg("-c")
        .arg(source);
    command
}

/// The files in `dir` that end in `.{extension}`, sorted.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.retain(|path| path.extension() == Some(OsStr::new(extension)));
    paths.sort();
    Ok(paths)
}
