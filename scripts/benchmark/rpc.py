"""What a step costs beside the model: vLLM's engine core on executors whose models compute nothing.

- in-process: the engine's own process answers; the least that an executor can cost
- metal-rpc: our shim, the socket, and a daemon that does all that it does but the model
- multiprocess: vLLM's own executor, with a worker process

They take turns, so that whatever else the machine does meets all, and each has the machine for
itself. A virtual machine has phases in which everything takes longer, so the quickest turn is
recorded beside the times over all.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from benchmark import paths
from benchmark.records import Records, say

EXECUTORS: Final = ("in-process", "metal-rpc", "multiprocess")
# A model of no time shows what an executor adds; one of 2 ms, what pipelining hides of it.
_MODELS_MS: Final = (0, 2)
_READY_TIMEOUT_S: Final = 60
# A worker of vLLM's multiprocess executor keeps a core busy for 1 s after its last message.
_SPINS_S: Final = {"multiprocess": 1.1}


class EngineCore:
    """An engine core in a process of its own."""

    def __init__(self, folder: Path, executor: str, scheduling: str, most_requests: int) -> None:
        worker = str(paths.WORKERS / "engine_core.py")
        command = [str(paths.PYTHON), worker, str(folder / "model")]
        command += [executor, scheduling, str(most_requests)]
        self.executor = executor
        self.turns_us: list[list[float]] = []
        self._log = (folder / f"{executor}.log").open("w+")
        path = [str(paths.WORKERS), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        )
        self._read()

    def run(self, requests: int, steps: int) -> None:
        """Adds the times of so many steps to `turns_us`, and waits until the machine is free."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"requests": requests, "steps": steps}) + "\n")
        self._process.stdin.flush()
        self.turns_us.append(json.loads(self._read()))
        time.sleep(_SPINS_S.get(self.executor, 0))

    def stop(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _read(self) -> str:
        stdout: IO[str] | None = self._process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"error: the engine core has ended:\n{self._log.read()[-3000:]}")
        return line


def run(records: Records, *, quick: bool) -> None:
    """Measures and records."""
    requests = (1, 16) if quick else (1, 16, 64, 256)
    rounds, steps = (2, 20) if quick else (8, 125)
    models_ms = _MODELS_MS[:1] if quick else _MODELS_MS
    modes = ("async",) if quick else ("sync", "async")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        _metald("bench", "checkpoint", "tiny", str(folder / "model"))
        for model_ms in models_ms:
            for scheduling in modes:
                _take_turns(records, folder, (scheduling, model_ms), (requests, rounds, steps))
    for model_ms in models_ms:
        arguments = ["bench", "rpc", "--json", "--steps", str(2 * rounds * steps)]
        arguments += ["--requests", ",".join(map(str, requests)), "--step-us", f"{1000 * model_ms}"]
        for text in _metald(*arguments).splitlines():
            line = records.add("rpc_stages", model_ms=model_ms, **json.loads(text))
            say(f"  stages, {model_ms} ms model, {line['requests']:3} requests: {_stages(line)}")


def _take_turns(
    records: Records, folder: Path, what: tuple[str, int], work: tuple[tuple[int, ...], int, int]
) -> None:
    scheduling, model_ms = what
    requests, rounds, steps = work
    endpoint = f"ipc://{folder}/metald.sock"
    variables = {
        "BENCH_MODEL_MS": str(model_ms),
        "METAL_RPC_ENDPOINT": endpoint,
        "METAL_RPC_AUTOSTART": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    with contextlib.ExitStack() as stack:
        os.environ.update(variables)
        stack.enter_context(_null_daemon(endpoint, model_ms))
        cores = []
        for executor in EXECUTORS:
            cores.append(EngineCore(folder, executor, scheduling, max(requests)))
            stack.callback(cores[-1].stop)
        for count in requests:
            for core in cores:
                core.turns_us.clear()
            for _ in range(rounds):
                for core in cores:
                    core.run(count, steps)
            for core in cores:
                _record(records, (core, scheduling, model_ms), count)


def _record(records: Records, what: tuple[EngineCore, str, int], requests: int) -> None:
    core, scheduling, model_ms = what
    quickest = min(core.turns_us, key=sum)
    times = [time_us for turn in core.turns_us for time_us in turn]
    line = records.add(
        "rpc",
        executor=core.executor,
        scheduling=scheduling,
        model_ms=model_ms,
        requests=requests,
        steps=len(times),
        **_summary("step_us", times),
        **_summary("quickest_us", quickest),
    )
    say(
        f"  {core.executor:12} {scheduling:5} {model_ms} ms model, {requests:3} requests: step p50 "
        f"{line['step_us_p50']:7.0f} us  p99 {line['step_us_p99']:7.0f} us, of the quickest turn "
        f"{line['quickest_us_p50']:7.0f} us  {line['quickest_us_p99']:7.0f} us"
    )


def _summary(name: str, times: list[float]) -> dict[str, float]:
    times = sorted(times)
    return {
        f"{name}_p50": times[len(times) // 2],
        f"{name}_p99": times[int(0.99 * len(times))],
        f"{name}_mean": sum(times) / len(times),
    }


def _stages(line: dict[str, Any]) -> str:
    return (
        f"encode {line['encode_us']:.1f}, decode {line['decode_us']:.1f}, reply encode "
        f"{line['reply_encode_us']:.1f}, decode {line['reply_decode_us']:.1f}, ping "
        f"{line['ping_us_p50']:.0f}, step {line['step_us_p50']:.0f}, of it waiting "
        f"{line['queue_us_p50']:.0f} and running {line['run_us_p50']:.0f} us"
    )


@contextlib.contextmanager
def _null_daemon(endpoint: str, model_ms: int) -> Iterator[None]:
    command = [str(paths.METALD), "bench", "null", "--endpoint", endpoint]
    command += ["--step-us", str(1000 * model_ms)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not Path(endpoint.removeprefix("ipc://")).is_socket():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("error: metald bench null does not listen")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


def _metald(*arguments: str) -> str:
    """The standard output of the daemon's program.

    Raises:
        SystemExit: It failed.
    """
    command = [str(paths.METALD), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"error: {' '.join(command)}:\n{result.stderr[-3000:]}")
    return result.stdout
