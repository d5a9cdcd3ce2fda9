"""Installs vLLM into the running interpreter's environment, without what only CUDA workers need.

On Linux the locked requirements go in without their dependencies, PyTorch gets stubs for the CUDA
libraries, and vLLM's CUDA kernels are removed: 2.4 GB instead of 9. On macOS the wheel of vLLM's
GitHub release is used, or its sources; that branch has not been run.
"""

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import cuda_stubs

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
RELEASES = "https://github.com/vllm-project/vllm/releases/download"

# Headers, tests and CUDA sources: nothing is compiled against them here.
UNUSED = (
    "torch/include",
    "torch/test",
    "vllm/third_party/deep_gemm/include",
    "vllm/third_party/fmha_sm100/cutlass",
)
# vLLM's CUDA kernels are larger, its pure CPU helpers smaller.
KERNEL_SIZE_BYTES_MIN = 1 << 20


def pip(*arguments: str) -> int:
    """Runs `pip install` with `arguments` in this environment and returns its exit status."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False).returncode


def pinned_vllm() -> str:
    """Returns the version of vLLM that requirements.txt pins."""
    match = re.search(r"^vllm==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{REQUIREMENTS} pins no version of vllm")
    return match[1]


def install_on_linux() -> None:
    """Installs the lock, then removes and stubs what belongs to CUDA."""
    if pip("--no-deps", "--requirement", str(REQUIREMENTS)) != 0:
        raise SystemExit("pip could not install requirements.txt")
    site_packages = Path(sysconfig.get_path("purelib"))
    for kernel in site_packages.glob("vllm/**/*.so"):
        if kernel.stat().st_size > KERNEL_SIZE_BYTES_MIN:
            kernel.unlink()
    for folder in UNUSED:
        shutil.rmtree(site_packages / folder, ignore_errors=True)
    stubs = cuda_stubs.write_stubs(site_packages / "torch" / "lib")
    print("stubs for:", *stubs)


def install_on_macos() -> None:
    """Installs the release's wheel, or builds the sources when the release attaches none."""
    version = pinned_vllm()
    wheel = f"vllm-{version}+cpu-cp312-cp312-macosx_11_0_arm64.whl"
    if pip(f"{RELEASES}/v{version}/{wheel}") != 0 and pip("--no-binary=vllm", f"vllm=={version}"):
        raise SystemExit(f"neither a wheel nor the sources of vLLM {version} could be installed")


if __name__ == "__main__":
    if platform.system() == "Darwin":
        install_on_macos()
    else:
        install_on_linux()
