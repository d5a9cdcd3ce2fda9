"""A frontend without vLLM: sends any message, right or wrong, and reads the replies."""

import contextlib
import os
import time
from typing import Any, Final, Self

import zmq

from framework import wire
from framework.wire import Body, Reply

REPLY_TIMEOUT_S: Final = 60.0
_LEAVE_TIMEOUT_S: Final = 10.0
_NEVER_MS: Final = 3_600_000
GREEDY: Final[Body] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "stop_token_ids": [],
    "logit_bias": [],
    "allowed_token_ids": None,
    "bad_words_token_ids": [],
    "logprobs": None,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "thinking_budget": None,
    "prompt_logprob_token_ids": None,
    "trace_decode_token_ids": None,
}


class DaemonError(Exception):
    """The daemon answered with `Error`."""

    def __init__(self, body: Body) -> None:
        self.code = wire.ERROR_CODES[body["code"]]
        self.scope = ("request", "session", "daemon")[body["scope"]]
        self.message: str = body["message"]
        super().__init__(f"{self.code} ({self.scope}): {self.message}")


class Peer:
    """One socket. What it sends may be anything."""

    def __init__(self, endpoint: str) -> None:
        # The process's context: one of its own, left open by a test that fails, would be ended by
        # the garbage collector, which can wait for its socket for ever.
        self._socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        # Another connection would be another peer.
        self._socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        self._monitor: zmq.Socket = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops the connection without a word."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._socket.close(linger=0)

    def send_frame(self, *frames: bytes) -> None:
        """Sends bytes that may be anything."""
        self._socket.send_multipart(frames)

    def receive_frame(self, timeout_s: float = REPLY_TIMEOUT_S) -> bytes:
        """Waits for a frame."""
        if not self._socket.poll(max(0, int(timeout_s * 1000))):
            raise TimeoutError(f"no reply within {timeout_s:g} s")
        return self._socket.recv()

    def wait_closed(self, timeout_s: float = REPLY_TIMEOUT_S) -> None:
        """Waits until the other side has closed the connection, without having said anything."""
        closed = self._monitor.poll(int(timeout_s * 1000))
        assert closed, f"it is still open after {timeout_s:g} s"
        assert not self._socket.poll(0), f"{self._socket.recv()!r} before the end"


class Frontend(Peer):
    """A peer that speaks the protocol, with at most one session."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._seq = 0
        self.session = b""
        self.specs: list[Body] = []
        self.vocab_size = 0

    def __exit__(self, *_: object) -> None:
        """Closes the session, so that its memory is free for the next test, and the connection.

        A frontend that is to go without a word calls `close`.
        """
        if self.session and not self._socket.closed:
            self._leave()
        self.close()

    def _leave(self) -> None:
        """Says goodbye, past whatever is still on its way, unless the daemon is gone."""
        seq = self.send("Goodbye")
        deadline = time.monotonic() + _LEAVE_TIMEOUT_S
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor):
            poller.register(socket, zmq.POLLIN)
        with contextlib.suppress(zmq.ZMQError, AssertionError):
            while (left_s := deadline - time.monotonic()) > 0:
                events = dict(poller.poll(int(1000 * left_s)))
                if self._socket not in events or self.receive().seq >= seq:
                    return

    # ---- Messages ----

    def send(self, name: str, **body: object) -> int:
        """Sends a request. Returns its number."""
        self._seq += 1
        self.send_frame(wire.encode_request(name, self.session, self._seq, body))
        return self._seq

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> Reply:
        """Waits for a reply, whatever it is."""
        return wire.decode_reply(self.receive_frame(timeout_s))

    def expect(self, name: str, seq: int) -> Body:
        """Waits for the answer to request `seq`.

        Raises:
            DaemonError: It is an error.
        """
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while True:
            reply = self.receive(deadline - time.monotonic())
            if reply.name in ("LoadProgress", "Pong") and reply.name != name:
                continue
            if reply.name == "Error":
                raise DaemonError(reply.body)
            assert (reply.name, reply.seq) == (name, seq), f"{reply} instead of {name} {seq}"
            return reply.body

    def call(self, request: str, reply: str, **body: object) -> Body:
        """Sends a request and waits for its answer."""
        return self.expect(reply, self.send(request, **body))

    # ---- The set-up ----

    def hello(self, name: str = "integration-test", weight: int = 1) -> Body:
        """Opens a session."""
        welcome = self.call(
            "Hello",
            "Welcome",
            min_protocol_version=1,
            max_protocol_version=1,
            vllm_version="0.33.0",
            frontend=name,
            pid=os.getpid(),
            weight=weight,
        )
        self.session = welcome["session"]
        return welcome

    def load_model(
        self,
        path: object,
        *,
        dtype: str = "float32",
        max_model_len: int = 1024,
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 512,
    ) -> Body:
        """Makes a model ready."""
        loaded = self.call(
            "LoadModel",
            "ModelLoaded",
            path=str(path),
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            logprobs_mode="raw_logprobs",
        )
        self.specs = loaded["kv_cache_specs"]
        self.vocab_size = loaded["vocab_size"]
        return loaded

    def create_cache(
        self, num_blocks: int = 256, block_size: int = 16, memory_fraction: float = 0.3
    ) -> Body:
        """Reserves memory and creates a cache with all layers, windowed or not, in one group."""
        self.call("ReserveMemory", "MemoryReserved", memory_fraction=memory_fraction)
        return self.call(
            "CreateCache",
            "CacheCreated",
            num_blocks=num_blocks,
            block_size=block_size,
            groups=[list(range(len(self.specs)))],
        )

    # ---- Steps ----

    def exec(self, **fields: object) -> int:
        """Sends a step; fields that are not given are empty. Returns its number."""
        empty: Body = {
            "sample_follows": False,
            "finished": [],
            "new_requests": [],
            "handles": [],
            "num_computed_tokens": [],
            "num_scheduled_tokens": [],
            "new_blocks": [],
            "block_copies": [],
            "grammar": None,
        }
        return self.send("Exec", **(empty | fields))

    def step(self, **fields: object) -> Body:
        """Sends a step and waits for its result."""
        return self.expect("StepResult", self.exec(**fields))

    def goodbye(self) -> None:
        """Closes the session."""
        self.call("Goodbye", "Farewell")
        self.session = b""


def new_request(
    handle: int, token_ids: list[int], block_ids: list[int], **sampling: object
) -> Body:
    """A request that starts with a prompt."""
    return {
        "handle": handle,
        "req_id": f"request-{handle}",
        "token_ids": token_ids,
        "num_prompt_tokens": len(token_ids),
        "block_ids": [block_ids],
        "sampling_params": GREEDY | sampling,
    }


def ready_frontend(
    endpoint: str,
    model: object,
    *,
    num_blocks: int = 256,
    memory_fraction: float = 0.3,
    **load: Any,
) -> Frontend:
    """A frontend whose session can run steps; `load` as for `Frontend.load_model`."""
    frontend = Frontend(endpoint)
    frontend.hello()
    frontend.load_model(model, **load)
    frontend.create_cache(num_blocks, memory_fraction=memory_fraction)
    return frontend
