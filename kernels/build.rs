//! Compiles our MLX primitives against the headers that mlx-sys publishes as `DEP_MLX_*`:
//! its own build script on macOS, `cargo xtask mlx` on Linux.
//!
//! One file starts kernels of the dialect: through Metal, through CUDA, or with the feature
//! `emulation` through fibers on the CPU.

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-changed=primitive");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .files([
            "primitive/evaluation.cpp",
            "primitive/host_kernel.cpp",
            "primitive/memory.cpp",
            "primitive/gpu_kernel.cpp",
            "primitive/replay.cpp",
            "primitive/replay_host.cpp",
        ])
        .warnings(true)
        .extra_warnings(true)
        .opt_level(2);
    // Elsewhere MLX is a part of the executable, and its allocator is Metal's.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        build.file("primitive/allocator.cpp");
    }
    if env::var_os("CARGO_FEATURE_EMULATION").is_some() {
        println!("cargo::rerun-if-changed=dialect");
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it"));
        write_variants(&out);
        build.include(&out).files([
            "primitive/launch_emulated.cpp",
            "dialect/emulated.cpp",
            "dialect/fiber.cpp",
            "primitive/upload_shared.cpp",
            "primitive/replay_none.cpp",
            "primitive/gpu_end_none.cpp",
        ]);
    } else if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") {
        build.files([
            "primitive/launch_metal.cpp",
            "primitive/upload_shared.cpp",
            "primitive/replay_none.cpp",
            "primitive/gpu_end_metal.cpp",
        ]);
    } else {
        build.files([
            "primitive/launch_cuda.cpp",
            "primitive/compile_cuda.cpp",
            "primitive/upload_cuda.cpp",
            "primitive/replay_cuda.cpp",
            "primitive/gpu_end_none.cpp",
            "primitive/cuda_driver.cpp",
            "primitive/early_start_cuda.cpp",
            "primitive/cuda_stream.cpp",
        ]);
    }
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

/// Writes what `dialect/emulated.cpp` includes: each variant in a namespace, and their names.
fn write_variants(out: &Path) {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("Cargo sets it"));
    let variants = fs::read_to_string("dialect/variants.txt").expect("the list of variants");
    let (mut code, mut names) = (String::new(), String::new());
    for line in variants.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(kernel), Some(files)) = (words.next(), words.next()) else {
            continue;
        };
        for file in files.split(',') {
            println!("cargo::rerun-if-changed={file}");
        }
        let words: Vec<(&str, &str)> = words
            .map(|word| word.split_once(':').expect("a word and its values"))
            .collect();
        for values in combinations(&words) {
            let name = [&[kernel], &values[..]].concat().join("__");
            let defines = words.iter().map(|(word, _)| *word).zip(values);
            let defines: Vec<_> = [("NAME", name.as_str())]
                .into_iter()
                .chain(defines)
                .collect();
            writeln!(code, "namespace variant_{name} {{").expect("a string grows");
            for (word, value) in &defines {
                writeln!(code, "#define {word} {value}").expect("a string grows");
            }
            for file in files.split(',') {
                let path = root.join(file);
                writeln!(code, "#include \"{}\"", path.display()).expect("a string grows");
            }
            for (word, _) in &defines {
                writeln!(code, "#undef {word}").expect("a string grows");
            }
            writeln!(code, "}}").expect("a string grows");
            writeln!(names, "VARIANT({name})").expect("a string grows");
        }
    }
    fs::write(out.join("emulated_variants.inc"), code).expect("OUT_DIR is writable");
    fs::write(out.join("emulated_names.inc"), names).expect("OUT_DIR is writable");
}

/// All choices of one value of each word, in the words' order.
fn combinations<'a>(words: &[(&'a str, &'a str)]) -> Vec<Vec<&'a str>> {
    words.iter().fold(vec![Vec::new()], |choices, (_, values)| {
        choices
            .iter()
            .flat_map(|choice| {
                values
                    .split(',')
                    .map(|value| [&choice[..], &[value]].concat())
            })
            .collect()
    })
}
