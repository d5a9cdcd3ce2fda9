"""What the machine can do: how fast all cores read memory, and how fast they multiply matrices.

Measured in the run whose numbers are judged by it.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmark import paths
from benchmark.records import Records, say

# Larger than any cache; a share of it for each core.
_READ_BYTES: Final = 2 << 30
_ROWS, _SIZE = 512, 4096
_REPEATS: Final = 5


def run(records: Records) -> None:
    """Measures and records."""
    cores = os.cpu_count() or 1
    read = _best(lambda: _read_bandwidth(cores))
    sgemm = _best(_product_rate_numpy)
    torch.set_num_threads(cores)
    bf16 = _best(lambda: _product_rate_torch(torch.bfloat16))
    f32 = _best(lambda: _product_rate_torch(torch.float32))
    line = records.add(
        "machine",
        cpu=_cpu(),
        cores=cores,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        commit=_commit(),
        load_average=os.getloadavg()[0],
        read_gb_per_s=read / 1e9,
        openblas_f32_gflop_per_s=sgemm / 1e9,
        torch_f32_gflop_per_s=f32 / 1e9,
        torch_bf16_gflop_per_s=bf16 / 1e9,
    )
    say(
        f"{line['cpu']}, {cores} cores: reads {read / 1e9:.1f} GB/s; product of {_ROWS} rows and "
        f"{_SIZE}x{_SIZE}: OpenBLAS f32 {sgemm / 1e9:.0f}, torch f32 {f32 / 1e9:.0f}, "
        f"torch bf16 {bf16 / 1e9:.0f} GFLOP/s"
    )


def _best(rate: Callable[[], float]) -> float:
    """The best of several: what the machine can do when others let it."""
    return max(rate() for _ in range(_REPEATS))


def _read_bandwidth(cores: int) -> float:
    """Bytes a second that all cores read together: dot products of an array with itself."""
    parts: list[Any] = [np.ones(_READ_BYTES // 4 // cores, dtype=np.float32) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(_sum, parts))
        start = time.perf_counter()
        list(threads.map(_sum, parts))
        seconds = time.perf_counter() - start
    return float(sum(part.nbytes for part in parts)) / seconds


def _sum(part: Any) -> float:
    # In pieces that BLAS does not share among threads of its own.
    return sum(float(np.add.reduce(piece)) for piece in np.array_split(part, 64))


def _product_rate_numpy() -> float:
    left: Any = np.ones((_ROWS, _SIZE), dtype=np.float32)
    right: Any = np.ones((_SIZE, _SIZE), dtype=np.float32)
    return _product_rate(lambda: left @ right.T)


def _product_rate_torch(dtype: torch.dtype) -> float:
    left = torch.ones((_ROWS, _SIZE), dtype=dtype)
    right = torch.ones((_SIZE, _SIZE), dtype=dtype)
    return _product_rate(lambda: torch.nn.functional.linear(left, right))


def _product_rate(product: Callable[[], object]) -> float:
    """Floating-point operations a second."""
    product()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return 2 * _ROWS * _SIZE * _SIZE / statistics.median(times)


def cpu_flags() -> set[str]:
    """What Linux says that the CPU has; nothing elsewhere."""
    if sys.platform != "linux":
        return set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


def _cpu() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    command = ["git", "-C", str(paths.REPOSITORY), "describe", "--always", "--dirty", "--abbrev=10"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
