"""Type-checks what only Apple's machines run: the kernels as Metal, the C++ that starts them.

Metal's address spaces are OpenCL's under other names, so clang's OpenCL C++ front end checks the
kernels, with our declarations of Metal's standard library (kernels/dialect/check). The C++ is
checked against the headers in MLX's wheel for macOS. Nothing is compiled, and nothing runs.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from clang import cindex

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
CHECK = KERNELS / "dialect" / "check"
MLX_METAL = "mlx-metal==0.32.2"
CPP_SOURCES = [
    "primitive/launch_metal.cpp",
    "primitive/gpu_kernel.cpp",
    "primitive/gpu_end_metal.cpp",
    "primitive/evaluation.cpp",
]

# Wrong programs that must be refused: a check that accepts them checks nothing.
WRONG_KERNELS = {
    "threadgroup memory as the device's": """KERNEL(NAME, OUT(float, x, 0)) {
        SHARED float part[32];
        device float* p = part;
        x[0] = p[0];
    }""",
    "an input written": "KERNEL(NAME, IN(float, x, 0)) { x[0] = 1; }",
    "a number taken for a bf16": "KERNEL(NAME, OUT(bf16, x, 0)) { x[0] = 1.0f; }",
}
WRONG_CPP = """
#include "primitive/gpu_kernel.h"
void f(metal_rpc::Launch& l, mlx::core::Stream s) { launch(l, s); }
"""


def variants() -> Iterator[tuple[str, str]]:
    """The kernels of variants.txt as programs: a name and a text."""
    for line in (KERNELS / "dialect" / "variants.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        kernel, files, *fields = line.split()
        words = [field.split(":") for field in fields]
        for values in itertools.product(*(choices.split(",") for _, choices in words)):
            name = "__".join([kernel, *values])
            defines = [
                f"#define {word} {value}\n" for (word, _), value in zip(words, values, strict=True)
            ]
            body = "".join((KERNELS / file).read_text() for file in files.split(","))
            yield name, "".join(defines) + body


def check_kernel(index: cindex.Index, name: str, program: str) -> list[str]:
    """What clang has against a program of the dialect as Metal."""
    prelude = "".join((KERNELS / "dialect" / file).read_text() for file in ("metal.h", "common.h"))
    text = f"#define NAME {name}\n{prelude}{program}"
    options = ["-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "--target=spir64"]
    unit = index.parse(
        "kernel.clcpp",
        args=[*options, "-Wno-unknown-attributes", f"-I{CHECK}"],
        unsaved_files=[("kernel.clcpp", text)],
    )
    lines = text.splitlines()
    return [
        f"{d.spelling}: {lines[d.location.line - 1].strip()}"
        for d in unit.diagnostics
        if d.severity >= 2
    ]


def check_cpp(index: cindex.Index, path: Path, include: Path, text: str | None = None) -> list[str]:
    """What clang has against a C++ file on macOS."""
    compiler = subprocess.run(
        ["gcc", "-print-file-name=include"], capture_output=True, text=True, check=True
    )
    folders = [
        Path(compiler.stdout.strip()),
        include,
        include / "metal_cpp",
        CHECK / "apple",
        mlx_c(),
    ]
    options = [option for folder in folders for option in ("-isystem", str(folder))]
    unsaved = None if text is None else [(str(path), text)]
    unit = index.parse(
        str(path),
        args=["-std=c++20", "-fblocks", "-w", f"-I{KERNELS}", *options],
        unsaved_files=unsaved,
    )
    return [
        f"{d.location.file}:{d.location.line}: {d.spelling}"
        for d in unit.diagnostics
        if d.severity >= 3
    ]


def mlx_c() -> Path:
    """The headers of mlx-c, as Cargo's configuration names them."""
    config = (ROOT / ".cargo" / "mlx-linux.toml").read_text()
    line = next(line for line in config.splitlines() if line.startswith("include"))
    return Path(line.split('"')[1].split(":")[1])


def mlx_headers(cache: Path) -> Path:
    """MLX's headers for macOS, from the cache or its wheel."""
    prefix = cache / MLX_METAL.replace("==", "-")
    if not prefix.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as download:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
            ]
            command += ["--platform=macosx_15_0_arm64", f"--dest={download}", MLX_METAL]
            subprocess.run(command, check=True)
            staging = Path(download) / "unpacked"
            with zipfile.ZipFile(next(Path(download).glob("*.whl"))) as wheel:
                names = [name for name in wheel.namelist() if name.startswith("mlx/include/")]
                wheel.extractall(staging, names)
            staging.rename(prefix)
    return prefix / "mlx" / "include"


def main(cache: str) -> int:
    """Checks everything; prints what is wrong."""
    index = cindex.Index.create()
    failures: list[str] = []
    count = 0
    for name, program in variants():
        count += 1
        failures += [f"{name}: {reason}" for reason in check_kernel(index, name, program)]
    for what, program in WRONG_KERNELS.items():
        if not check_kernel(index, "wrong", program):
            failures.append(f"the check accepts a wrong kernel: {what}")
    include = mlx_headers(Path(cache))
    for source in CPP_SOURCES:
        failures += check_cpp(index, KERNELS / source, include)
    if not check_cpp(index, KERNELS / "wrong.cpp", include, WRONG_CPP):
        failures.append("the check accepts wrong C++")
    for failure in failures:
        print(failure)
    files = len(CPP_SOURCES)
    print(f"{count} kernels as Metal, {files} files of C++: {len(failures)} errors")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
