"""How llama.cpp is built for the CPU at hand.

Its own way is `-march=native`. Where that brings AMX, its kernels for Q8_0 and Q4_0 end with an
illegal instruction when gcc 12 has compiled them: they use tiles before these are configured. There
the other instructions are named one by one.
"""

import platform
from typing import Final

from benchmark.machine import cpu_flags

_LIBRARY_ALONE: Final = (
    "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_COMMON=OFF"
)
# ggml's options, and what /proc/cpuinfo calls the same.
_INSTRUCTIONS: Final = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512bw",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}


def cmake_arguments() -> str:
    """The options of its build."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"-DGGML_NATIVE=ON {_LIBRARY_ALONE}"
    flags = cpu_flags()
    if "amx_tile" not in flags:
        return f"-DGGML_NATIVE=ON {_LIBRARY_ALONE}"
    named = (f"-DGGML_{option}=ON" for option, flag in _INSTRUCTIONS.items() if flag in flags)
    return f"-DGGML_NATIVE=OFF {' '.join(named)} {_LIBRARY_ALONE}"
