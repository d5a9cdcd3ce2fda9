"""`vllm serve` on our daemon under `vllm bench serve`, and the daemon alone on the same work.

The ratio of the two is what vLLM, the shim and the socket cost in throughput.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from benchmark import paths
from benchmark.engines import Work
from benchmark.records import Records, say

_READY_TIMEOUT_S: Final = 300
_BENCH_TIMEOUT_S: Final = 1800


class Server:
    """`vllm serve`, and the daemon that it starts."""

    def __init__(self, model: Path, folder: Path, most_requests: int) -> None:
        self.endpoint = f"ipc://{folder}/metald.sock"
        self._environment = os.environ | {
            "METAL_RPC_ENDPOINT": self.endpoint,
            "METAL_RPC_DAEMON": str(paths.METALD),
            "XDG_STATE_HOME": str(folder),
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.command = ["vllm", "serve", str(model), "--distributed-executor-backend", "metal-rpc"]
        self.command += ["--max-model-len", "1024", "--max-num-seqs", str(most_requests)]
        self.command += ["--gpu-memory-utilization", "0.3", "--no-enable-prefix-caching"]
        self.command += ["--max-num-batched-tokens", "2048", "--served-model-name", "model"]
        self._log = (folder / "vllm.log").open("w+")
        started = time.monotonic()
        self._process = subprocess.Popen(
            [*_vllm(), *self.command[1:], "--port", str(self._port)],
            stdout=self._log,
            stderr=self._log,
            env=self._environment,
        )
        self._wait()
        self.start_s = time.monotonic() - started

    def bench(self, model: Path, folder: Path, work: tuple[int, int, int]) -> dict[str, Any]:
        """Runs `vllm bench serve`: as many requests as may run at the same time, all at once."""
        prompt, decode, concurrency = work
        result = folder / "result.json"
        command = ["bench", "serve", "--backend", "vllm", "--base-url", self.url]
        command += ["--model", "model", "--tokenizer", str(model), "--dataset-name", "random"]
        command += ["--random-input-len", str(prompt), "--random-output-len", str(decode)]
        command += ["--num-prompts", str(concurrency), "--max-concurrency", str(concurrency)]
        command += ["--ignore-eos", "--temperature", "0", "--num-warmups", str(min(concurrency, 2))]
        command += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99"]
        command += ["--save-result", "--result-filename", str(result)]
        done = subprocess.run(
            [*_vllm(), *command],
            stdout=self._log,
            stderr=self._log,
            timeout=_BENCH_TIMEOUT_S,
            env=self._environment,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"error: vllm bench serve failed; see below\n{self._tail()}")
        measured: dict[str, Any] = json.loads(result.read_text())
        return measured | {"command": " ".join(["vllm", *command])}

    def stop(self) -> None:
        """Ends the server and its daemon."""
        status = subprocess.run(
            [str(paths.METALD), "status", "--json"],
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
        )
        self._process.terminate()
        self._process.wait()
        if status.returncode == 0:
            os.kill(json.loads(status.stdout)["pid"], 15)

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise SystemExit(f"error: vllm serve has ended\n{self._tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.stop()
        raise SystemExit(f"error: vllm serve is not ready\n{self._tail()}")

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:]


def _vllm() -> list[str]:
    return [str(paths.PYTHON), str(paths.PYTHON.with_name("vllm"))]


def run(records: Records, model: Path, work: Work) -> None:
    """Measures and records."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        say("starting vllm serve ...")
        server = Server(model, folder, max(work.concurrency))
        try:
            say(f"  ready after {server.start_s:.1f} s")
            records.add("serve", start_s=server.start_s, command=" ".join(server.command))
            for concurrency in work.concurrency:
                _measure(records, server, (model, folder), (work.prompt, work.decode, concurrency))
        finally:
            server.stop()


def _measure(
    records: Records, server: Server, where: tuple[Path, Path], what: tuple[int, int, int]
) -> None:
    prompt, decode, concurrency = what
    served = server.bench(*where, what)
    # The first token of each request is the prompt's.
    alone = _alone(server, where[0], (prompt, decode - 1, concurrency))
    decode_rate = alone["decode_tokens_per_s"][0]
    prefill_s = concurrency * prompt / alone["prefill_tokens_per_s"][0]
    alone_s = prefill_s + concurrency * (decode - 1) / decode_rate
    line = records.add(
        "end_to_end",
        concurrency=concurrency,
        prompt=prompt,
        decode=decode,
        ttft_ms=[served["p50_ttft_ms"], served["p99_ttft_ms"]],
        tpot_ms=[served["p50_tpot_ms"], served["p99_tpot_ms"]],
        itl_ms=[served["p50_itl_ms"], served["p99_itl_ms"]],
        output_tokens_per_s=served["output_throughput"],
        duration_s=served["duration"],
        daemon_duration_s=alone_s,
        daemon_decode_tokens_per_s=decode_rate,
        ratio_of_durations=alone_s / served["duration"],
        ratio_of_decode=concurrency * 1e3 / served["p50_itl_ms"] / decode_rate,
        command=served["command"],
    )
    say(
        f"  x{concurrency:<3} TTFT {line['ttft_ms'][0]:.0f} ms, TPOT {line['tpot_ms'][0]:.1f} ms, "
        f"{line['output_tokens_per_s']:.1f} tok/s; of the daemon alone: "
        f"{line['ratio_of_durations']:.3f} in all, {line['ratio_of_decode']:.3f} of its decode rate"
    )


def _alone(server: Server, model: Path, what: tuple[int, int, int]) -> dict[str, Any]:
    prompt, decode, concurrency = what
    command = [str(paths.METALD), "bench", "serve", "--json", "--endpoint", server.endpoint]
    command += ["--model", str(model), "--concurrency", str(concurrency), "--repeat", "1"]
    command += ["--prompt", str(prompt), "--decode", str(decode)]
    # What the server has reserved counts.
    command += ["--memory-fraction", "0.6"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"error: metald bench serve: {result.stderr}")
    row: dict[str, Any] = json.loads(result.stdout)
    return row
