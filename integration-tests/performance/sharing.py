"""What sharing a daemon costs, and what a light frontend has of it beside a heavy one.

Prints; asserts nothing, because times belong to one machine. Frontends are those of the framework,
so that the daemon is measured and not the processors that vLLM's processes would need:

    cd integration-tests && ../.venv/bin/python -m performance.sharing [throughput|light] ...
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from framework import models
from framework.daemon import Daemon
from framework.frontend import ready_frontend
from framework.load import Load

MODEL: Final = "smollm2-135m"
WARM_UP_S: Final = 4.0
MEASURED_S: Final = 10.0
ROUNDS: Final = 5
# A step without a bound on its turn: what the daemon did before it had turns.
NO_TURNS: Final = "--turn-tokens=131072"
LIGHT: Final[dict[str, Any]] = {"num_streams": 1, "prompt_tokens": 16, "output_tokens": 400}
HEAVY: Final[dict[str, Any]] = {"num_streams": 32, "prompt_tokens": 600, "output_tokens": 60}


def main() -> None:
    """Runs the parts that the command line names, or both."""
    parts = {"throughput": throughput, "light": light}
    folder = models.real(MODEL)
    for name in sys.argv[1:] or parts:
        parts[name](folder)


def throughput(model: Path) -> None:
    """Two frontends at concurrency 8 each against one at 16."""
    rates: dict[str, list[float]] = {"one at 16": [], "two at 8": []}
    footprints, merged = {}, {}
    for _ in range(ROUNDS):
        for name, counts in {"one at 16": [16], "two at 8": [8, 8]}.items():
            with _daemon() as daemon:
                loads = [_decoding(daemon, model, count) for count in counts]
                measured, report = _measure(daemon, loads)
                rates[name].append(sum(load["tokens_per_s"] for load in measured))
                footprints[name] = report["footprint_bytes"]
                merged[name] = report["steps_a_forward"]
                (loaded,) = report["models"]
                assert loaded["sessions"] == len(counts)
    print(f"throughput, {model.name}, decode, tokens/s: median [min max] of {ROUNDS}")
    for name, values in rates.items():
        print(
            f"  {name:10} {_spread(values)}   {footprints[name] >> 20} MiB in memory, "
            f"{merged[name]:.2f} steps a forward"
        )
    ratio = statistics.median(rates["two at 8"]) / statistics.median(rates["one at 16"])
    print(f"  ratio {ratio:.3f}; weights {loaded['weights_bytes'] >> 20} MiB, once in both")


def light(model: Path) -> None:
    """One stream beside 32 with long prompts, with and without turns."""
    with _daemon() as daemon:
        (alone,), _ = _measure(daemon, [Load(_frontend(daemon, model, 0.2), **LIGHT)])
    fair_half_ms = 2 * alone["median_ms"]
    print(f"light beside heavy, {model.name}, ms a token: median [p90 max]")
    print(f"  alone            {_times(alone)}; a fair half would be {fair_half_ms:.1f}")
    for name, flags in {"with turns": (), "without turns": (NO_TURNS,)}.items():
        with _daemon(*flags) as daemon:
            loads = [
                Load(_frontend(daemon, model, 0.2), **LIGHT),
                Load(_frontend(daemon, model, 0.5, max_num_batched_tokens=2048), **HEAVY),
            ]
            (few, many), _ = _measure(daemon, loads)
        ratio = few["mean_ms"] / fair_half_ms
        print(
            f"  {name:16} {_times(few)}; mean {few['mean_ms']:.1f} is {ratio:.2f} x a fair half; "
            f"the heavy one {many['tokens_per_s']:.0f} tokens/s"
        )


def _daemon(*flags: str) -> Daemon:
    return Daemon(Path(tempfile.mkdtemp(prefix="metal-rpc-", dir="/tmp")), *flags)


def _frontend(daemon: Daemon, model: Path, memory_fraction: float, **load: Any) -> Any:
    return ready_frontend(
        daemon.endpoint,
        model,
        num_blocks=2000,
        memory_fraction=memory_fraction,
        dtype="bfloat16",
        **load,
    )


def _decoding(daemon: Daemon, model: Path, count: int) -> Load:
    frontend = _frontend(daemon, model, 0.25 if count == 8 else 0.5)
    return Load(frontend, num_streams=count, prompt_tokens=16, output_tokens=200)


def _measure(daemon: Daemon, loads: list[Load]) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """What each load measures, and what the daemon says of itself while all of them run."""
    threads = [threading.Thread(target=load.run, daemon=True) for load in loads]
    for thread in threads:
        thread.start()
    time.sleep(WARM_UP_S)
    report = daemon.status()
    for load in loads:
        load.begin_measuring()
    time.sleep(MEASURED_S)
    served = daemon.status()["served"]
    measured = [load.end_measuring() for load in loads]
    for thread in threads:
        thread.join()
    steps, forwards = (served[what] - report["served"][what] for what in ("steps", "forwards"))
    # An engine that is too busy to answer has none.
    return measured, {**report, "steps_a_forward": steps / forwards if forwards > 0 else None}


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):7.1f} [{min(values):.1f} {max(values):.1f}]"


def _times(load: dict[str, float]) -> str:
    return f"{load['median_ms']:7.1f} [{load['p90_ms']:.1f} {load['max_ms']:.1f}]"


if __name__ == "__main__":
    main()
