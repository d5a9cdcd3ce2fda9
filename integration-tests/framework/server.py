"""`vllm serve` as a subprocess, asked over HTTP."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self

import requests

from framework import paths
from framework.daemon import environment, free_port, log_tail

# A start takes 20 s on an idle machine; several at once on two busy cores take minutes.
START_TIMEOUT_S: Final = 400.0
STOP_TIMEOUT_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 180.0
_POLL_S: Final = 0.2


class Server:
    """An API server whose daemon listens in `folder`; its shim starts one if none does."""

    def __init__(self, model: object, folder: Path, *flags: str, **variables: str) -> None:
        self.folder = folder
        self.flags = flags
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = folder / f"vllm-{self.port}.log"
        self._command = [
            str(paths.vllm()),
            "serve",
            str(model),
            "--distributed-executor-backend=metal-rpc",
            f"--port={self.port}",
            "--host=127.0.0.1",
            "--served-model-name=model",
            *flags,
        ]
        self._environment = environment(folder, **variables)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it, without waiting."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Waits until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"vllm serve ended before it was ready:\n{self.log()}")
            if _answers(f"{self.url}/health"):
                return
            time.sleep(_POLL_S)
        self.stop()
        raise AssertionError(f"vllm serve is not ready after {START_TIMEOUT_S:g} s:\n{self.log()}")

    def wait_end(self) -> int:
        """Waits until it ends by itself. Returns the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"vllm serve does not end:\n{self.log()}") from None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def send_signal(self, sent: signal.Signals) -> None:
        """Sends a signal to all processes of vLLM, and not to the daemon."""
        assert self._process is not None
        os.killpg(self._process.pid, sent)

    def log(self) -> str:
        """The end of its log."""
        return log_tail(self.log_path)

    # ---- Requests ----

    def post(self, path: str, **body: Any) -> requests.Response:
        """Posts JSON; any status is returned."""
        return requests.post(
            f"{self.url}{path}", json={"model": "model"} | body, timeout=REQUEST_TIMEOUT_S
        )

    def complete(self, prompt: Any, **parameters: Any) -> dict[str, Any]:
        """One choice of `/v1/completions`, with its token ids."""
        return self._choice("/v1/completions", prompt=prompt, **parameters)

    def chat(self, content: str, **parameters: Any) -> dict[str, Any]:
        """One choice of `/v1/chat/completions`, with its token ids."""
        return self._choice("/v1/chat/completions", messages=messages(content), **parameters)

    def complete_all(self, prompts: list[Any], **parameters: Any) -> list[dict[str, Any]]:
        """All prompts at once, with the same parameters."""
        return self.ask_all([{"prompt": prompt} | parameters for prompt in prompts])

    def ask_all(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All completions at once, one connection each."""
        with ThreadPoolExecutor(len(bodies)) as threads:
            return list(threads.map(lambda body: self.complete(**body), bodies))

    def stream(self, path: str, **body: Any) -> Iterator[dict[str, Any]]:
        """The events of a streaming request."""
        payload: dict[str, Any] = {"model": "model", "stream": True, "return_token_ids": True}
        response = requests.post(
            f"{self.url}{path}",
            json=payload | body,
            timeout=REQUEST_TIMEOUT_S,
            stream=True,
        )
        assert response.status_code == requests.codes.ok, response.text
        for line in response.iter_lines():
            data = line.removeprefix(b"data: ")
            if data and data != b"[DONE]":
                event = json.loads(data)
                assert "error" not in event, event
                yield event

    def metric(self, name: str) -> float:
        """The sum of a counter over its labels."""
        text = requests.get(f"{self.url}/metrics", timeout=REQUEST_TIMEOUT_S).text
        samples = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        assert samples, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in samples)

    def _choice(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.post(path, return_token_ids=True, **body)
        assert response.status_code == requests.codes.ok, f"{response.text}\n{self.log()}"
        answer = response.json()
        choice = answer["choices"][0]
        # The two endpoints put the prompt's token ids in different places.
        return {"prompt_token_ids": answer.get("prompt_token_ids")} | choice


def messages(content: str) -> list[dict[str, str]]:
    """A chat of one question."""
    return [{"role": "user", "content": content}]


def streamed_token_ids(events: Iterator[dict[str, Any]]) -> list[int]:
    """The token ids of a stream's only choice."""
    tokens: list[int] = []
    for event in events:
        for choice in event["choices"]:
            tokens += choice.get("token_ids") or []
    return tokens


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == requests.codes.ok
    except requests.RequestException:
        return False
