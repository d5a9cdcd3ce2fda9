"""All engines on the same work, in turns, so that whatever else the machine does meets all."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from benchmark import paths
from benchmark.engines import OURS, Engine, Work
from benchmark.environments import MissingError
from benchmark.records import Records, say

_PATIENCE_S: Final = 1200
# A measurement that takes longer than this is made once.
_LONG_S: Final = 20.0


class Contestant(Protocol):
    """An engine that is running."""

    about: dict[str, Any]

    def measure(self, work: Work, concurrency: int, seed: int) -> tuple[float, float]:
        """Seconds of the prompts, and of the steps after them."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...


class Worker:
    """A worker in its own environment: one JSON line asks, one answers.

    It and its children are stopped while others are measured, because some spin while they wait.
    """

    def __init__(self, engine: Engine) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            engine.command(engine.model()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | engine.variables(),
            start_new_session=True,
        )
        try:
            self.about = self._answer()
        except MissingError:
            self.stop()
            raise
        self._signal(signal.SIGSTOP)

    def measure(self, work: Work, concurrency: int, seed: int) -> tuple[float, float]:
        """See `Contestant`."""
        assert self._process.stdin is not None
        request = {"prompt": work.prompt, "decode": work.decode, "seed": seed}
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request | {"concurrency": concurrency}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise MissingError("its worker has ended before") from error
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer["prefill_s"], answer["decode_s"]

    def stop(self) -> None:
        """See `Contestant`."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            lines = [text for text in self._log.read().splitlines() if text.strip()]
            raise MissingError(f"its worker has ended: {' / '.join(lines[-2:])[-300:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Ours:
    """The daemon, and `metald bench serve` as its frontend."""

    def __init__(self, engine: Engine) -> None:
        self._model = engine.model()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._endpoint = f"ipc://{self._folder.name}/metald.sock"
        started = time.monotonic()
        self._process = subprocess.Popen(
            [str(paths.METALD), "serve", "--endpoint", self._endpoint],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        version = subprocess.run(
            [str(paths.METALD), "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        self.about: dict[str, Any] = {"version": version}
        while not Path(self._endpoint.removeprefix("ipc://")).is_socket():
            if self._process.poll() is not None:
                raise MissingError(f"metald ended with {self._process.returncode}")
            time.sleep(0.001)
        # One token of a short prompt, with the load before it.
        self._bench(Work(8, 1), 1)
        self.about["first_token_s"] = time.monotonic() - started

    def measure(self, work: Work, concurrency: int, seed: int) -> tuple[float, float]:
        """See `Contestant`."""
        del seed  # It has prompts of its own.
        row = self._bench(work, concurrency)
        prefill, decode = row["prefill_tokens_per_s"][0], row["decode_tokens_per_s"][0]
        return concurrency * work.prompt / prefill, concurrency * work.decode / decode

    def stop(self) -> None:
        """See `Contestant`."""
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _bench(self, work: Work, concurrency: int) -> dict[str, Any]:
        command = [str(paths.METALD), "bench", "serve", "--json", "--repeat", "1", "--warmup", "0"]
        command += ["--endpoint", self._endpoint, "--model", str(self._model)]
        command += ["--prompt", str(work.prompt), "--decode", str(work.decode)]
        command += ["--concurrency", str(concurrency)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
        if result.returncode != 0:
            raise MissingError(f"metald bench: {result.stderr.strip()[-300:]}")
        row: dict[str, Any] = json.loads(result.stdout)
        return row


def run(records: Records, engines: list[Engine], work: Work, rounds: int) -> None:
    """Measures engines of the same bits in turns; those that cannot run are recorded as such."""
    for bits in sorted({engine.bits for engine in engines}, reverse=True):
        with contextlib.ExitStack() as stack:
            running = list(_start(records, [e for e in engines if e.bits == bits], stack))
            for engine, contestant in running:
                # Caches, pools and page tables are filled before anything counts.
                contestant.measure(Work(engine.work(work).prompt, 4), 1, 1)
            for concurrency in work.concurrency:
                _take_turns(records, running, (work, concurrency, rounds))


def _start(
    records: Records, engines: list[Engine], stack: contextlib.ExitStack
) -> Iterator[tuple[Engine, Contestant]]:
    for engine in engines:
        say(f"starting {engine.name}, {engine.weights} ...")
        try:
            contestant = Ours(engine) if engine.name == OURS else Worker(engine)
        except MissingError as reason:
            say(f"  not measured: {reason}")
            records.add("missing", engine=engine.name, weights=engine.weights, why=str(reason))
            continue
        stack.callback(contestant.stop)
        records.add("start", engine=engine.name, weights=engine.weights, **contestant.about)
        yield engine, contestant


def _take_turns(
    records: Records, running: list[tuple[Engine, Contestant]], what: tuple[Work, int, int]
) -> None:
    work, concurrency, rounds = what
    done: set[Engine] = set()
    for number in range(rounds):
        for engine, contestant in running:
            own = engine.work(work)
            if engine in done or concurrency not in own.concurrency:
                continue
            try:
                prefill_s, decode_s = contestant.measure(own, concurrency, 100 + number)
            except MissingError as reason:
                done.add(engine)
                say(f"  {engine.name}, {engine.weights}, x{concurrency}: {reason}")
                why = f"{concurrency} requests: {reason}"
                records.add("missing", engine=engine.name, weights=engine.weights, why=why)
                continue
            if prefill_s + decode_s > _LONG_S:
                done.add(engine)
            _record(records, engine, (own, concurrency, number), (prefill_s, decode_s))


def _record(
    records: Records, engine: Engine, what: tuple[Work, int, int], seconds: tuple[float, float]
) -> None:
    work, concurrency, number = what
    line = records.add(
        "engine",
        engine=engine.name,
        bits=engine.bits,
        weights=engine.weights,
        concurrency=concurrency,
        prompt=work.prompt,
        decode=work.decode,
        round=number,
        prefill_tokens_per_s=concurrency * work.prompt / seconds[0],
        decode_tokens_per_s=concurrency * work.decode / seconds[1],
    )
    say(
        f"  {engine.name:18} {engine.weights:20} x{concurrency:<3} prefill "
        f"{line['prefill_tokens_per_s']:8.1f} tok/s   decode "
        f"{line['decode_tokens_per_s']:8.1f} tok/s"
    )
