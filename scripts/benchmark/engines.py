"""Which engine runs which weights, and how it is started.

Everything is made of one checkpoint, so that all engines read the same weights, in the formats that
each has.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmark import environments, machine, paths
from benchmark.environments import MissingError
from benchmark.records import say

MODELS: Final = {"smollm2-135m": "SmolLM2-135M", "gemma3-270m": "Gemma 3 270M"}
DEFAULT_MODEL: Final = "smollm2-135m"


@dataclass(frozen=True)
class Work:
    """What is asked of an engine.

    Attributes:
        prompt: Tokens of each prompt.
        decode: Steps after the prompts.
        concurrency: Requests at the same time; each number is a measurement of its own.
    """

    prompt: int = 512
    decode: int = 128
    concurrency: tuple[int, ...] = (1, 8, 32)


@dataclass(frozen=True)
class Engine:
    """An engine with weights of one format.

    Attributes:
        name: What people call it.
        bits: Of its weights: 32, 16, 8 or 4.
        weights: Their format.
        model: Makes or finds the model; returns its path.
        command: Starts the engine's worker, from the path of the model.
        variables: What its worker's environment has.
        is_slow: It gets one short request instead of the work of the others.
    """

    name: str
    bits: int
    weights: str
    model: Callable[[], Path]
    command: Callable[[Path], list[str]]
    variables: Callable[[], dict[str, str]] = field(default=dict)
    is_slow: bool = False

    def work(self, work: Work) -> Work:
        """What it gets of the work."""
        if not self.is_slow:
            return work
        return Work(min(work.prompt, 32), min(work.decode, 16), (1,))


def folder(name: str) -> Path:
    """A model's folder.

    Raises:
        MissingError: It cannot be made.
    """
    command = [str(paths.REPOSITORY / "scripts" / "get-model"), name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MissingError(f"get-model {name}: {result.stderr.strip()[-300:]}")
    return Path(result.stdout.splitlines()[-1])


def gguf(model: str, weights: str) -> Path:
    """A model as a GGUF file.

    Raises:
        MissingError: It cannot be made.
    """
    (source,) = folder(f"{model}-gguf").glob("*.gguf")
    target = paths.cache() / f"{model}-{weights}.gguf"
    if not target.is_file():
        say(f"making {target.name} ...")
        script = paths.WORKERS / "llama_cpp_quantize.py"
        python = environments.LLAMA_CPP.python()
        command = [str(python), str(script), str(source), str(target), weights]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise MissingError(f"{target.name}: {result.stderr.strip()[-300:]}")
    return target


def worker(python: Callable[[], Path], script: str) -> Callable[[Path], list[str]]:
    """The command of a Python worker."""
    return lambda model: [str(python()), str(paths.WORKERS / script), str(model)]


def _with_openblas() -> dict[str, str]:
    library = environments.openblas()
    (fortran,) = library.parents[4].glob("usr/lib/*/libgfortran.so.5")
    variables = {"LD_PRELOAD": f"{library}", "LD_LIBRARY_PATH": str(fortran.parent)}
    if "avx512bw" in machine.cpu_flags():
        # It takes a CPU that is younger than itself for the oldest one, five times slower.
        variables["OPENBLAS_CORETYPE"] = "SKYLAKEX"
    return variables


def _vllm_cpu(dtype: str) -> Callable[[], dict[str, str]]:
    # Our own plugin, which the shared packages bring along, is not what is measured here.
    return lambda: {
        "BENCH_DTYPE": dtype,
        "VLLM_PLUGINS": "",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }


def _llama_cpp(bits: int, weights: str, model: str) -> Engine:
    start = worker(environments.LLAMA_CPP.python, "llama_cpp_worker.py")
    return Engine("llama.cpp", bits, weights, lambda: gguf(model, weights), start)


def _mlx_lm(name: str, bits: int, weights: str, model: str, **more: object) -> Engine:
    start = worker(environments.MLX_LM.python, "mlx_lm_worker.py")
    return Engine(name, bits, weights, lambda: folder(model), start, **more)  # type: ignore[arg-type]


def _ours(bits: int, weights: str, model: str) -> Engine:
    # The daemon itself: `contest` runs `metald bench serve` against it.
    return Engine("metal-rpc", bits, weights, lambda: folder(model), lambda _: [str(paths.METALD)])


OURS: Final = "metal-rpc"
_AFFINE: Final = "affine, groups of 64"


def of(model: str) -> tuple[Engine, ...]:
    """All engines with the weights of one of `MODELS`."""
    vllm_cpu = worker(environments.VLLM_CPU.python, "vllm_cpu_worker.py")
    transformers = worker(lambda: paths.PYTHON, "transformers_worker.py")
    return (
        _ours(16, "bfloat16", model),
        _ours(8, _AFFINE, f"{model}-8bit"),
        _ours(4, _AFFINE, f"{model}-4bit"),
        _llama_cpp(16, "bf16", model),
        _llama_cpp(16, "f16", model),
        _llama_cpp(8, "q8_0", model),
        _llama_cpp(4, "q4_0", model),
        _llama_cpp(4, "q4_1", model),
        Engine("vLLM CPU", 16, "bfloat16", lambda: folder(model), vllm_cpu, _vllm_cpu("bfloat16")),
        Engine("vLLM CPU", 32, "float32", lambda: folder(model), vllm_cpu, _vllm_cpu("float32")),
        Engine("transformers", 16, "bfloat16", lambda: folder(model), transformers),
        _mlx_lm("mlx-lm, OpenBLAS", 32, "float32", model, variables=_with_openblas),
        _mlx_lm("mlx-lm", 32, "float32", model, is_slow=True),
        _mlx_lm("mlx-lm", 8, _AFFINE, f"{model}-8bit", is_slow=True),
        _mlx_lm("mlx-lm", 4, _AFFINE, f"{model}-4bit", is_slow=True),
    )
