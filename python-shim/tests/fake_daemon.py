"""A daemon in Python: speaks the protocol, and generates tokens that depend on the whole history.

It keeps a KV cache of token ids, so a wrong block table, a handle used twice or a stale prefix is
an error here and not only a wrong number somewhere.
"""

import hashlib
import itertools
import os
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import zmq

from vllm_metal_rpc import codec
from vllm_metal_rpc import messages as m
from vllm_metal_rpc.errors import ErrorCode, Scope

_epochs = itertools.count(1)


class Death(Exception):
    """The daemon dies now."""


class Refusal(Exception):
    def __init__(self, code: ErrorCode, scope: Scope, message: str) -> None:
        super().__init__(message)
        self.reply = m.ErrorReply(code, scope, message)


def invalid(message: str) -> Refusal:
    return Refusal(ErrorCode.INVALID_STEP, Scope.SESSION, message)


@dataclass
class Request:
    tokens: list[int]
    num_prompt_tokens: int
    blocks: list[int]
    params: m.SamplingParams


@dataclass
class FakeSession:
    requests: dict[int, Request] = field(default_factory=dict)
    kv: dict[tuple[int, int], int] = field(default_factory=dict)
    cache: m.CreateCache | None = None
    waiting: dict[int, m.Exec] = field(default_factory=dict)


@dataclass
class Script:
    """How the daemon behaves.

    Attributes:
        restart_after: Numbers of steps after which the daemon dies and a new one listens.
        die_at: Messages, by their type, each of which kills one daemon when it arrives.
        die_token: A request whose prompt begins with it kills every daemon that it reaches.
        lost_token: Each step that runs it fails, and ends its session.
        refuse: Answers of messages, by their type, used once.
        step_delay_s: Time that a step takes.
        fail_token: A request whose prompt begins with it cannot be sampled.
        mute: Whether to read and answer nothing.
        down_s: How long a restart takes.
    """

    restart_after: list[int] = field(default_factory=list)
    die_at: list[type] = field(default_factory=list)
    die_token: int = -1
    lost_token: int = -1
    refuse: dict[type, m.ErrorReply] = field(default_factory=dict)
    step_delay_s: float = 0.0
    mute: bool = False
    down_s: float = 0.05
    heartbeat_ms: int = 200
    lease_ms: int = 5000
    available_bytes: int = 1 << 20
    num_layers: int = 2
    sliding_window: int | None = None
    vocab_size: int = 1024
    first_token: int = 100
    fail_token: int = -1


class FakeDaemon:
    def __init__(self, endpoint: str, script: Script | None = None) -> None:
        self.endpoint = endpoint
        self.script = script or Script()
        self.sessions: dict[bytes, FakeSession] = {}
        self.received: list[m.Message] = []
        self.num_steps = 0
        self.num_restarts = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._restart = threading.Event()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeDaemon":
        self._thread.start()
        assert self._listening.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        if self.error is not None:
            raise self.error

    def restart(self) -> None:
        self._listening.clear()
        self._restart.set()
        assert self._listening.wait(60)

    def count(self, kind: type[m.Message]) -> int:
        return sum(isinstance(message, kind) for message in self.received)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._live()
                self.sessions.clear()
                if not self._stop.is_set():
                    self.num_restarts += 1
                    self._be_down()
        except BaseException as error:
            self.error = error

    def _be_down(self) -> None:
        """For `down_s`, which a test may change meanwhile."""
        since = time.monotonic()
        while time.monotonic() < since + self.script.down_s and not self._stop.wait(0.005):
            pass

    def _live(self) -> None:
        """One process of the daemon, from start to kill."""
        self._restart.clear()
        epoch = next(_epochs)
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(self.endpoint)
            self._listening.set()
            while not (self._stop.is_set() or self._restart.is_set()):
                if not socket.poll(20):
                    continue
                if self.script.mute:
                    time.sleep(0.005)
                    continue
                identity, *frames = socket.recv_multipart()
                assert len(frames) == 1, "a message is one frame"
                try:
                    replies = self._answer(frames[0], epoch)
                except Death:
                    return
                for reply, seq in replies:
                    socket.send_multipart([identity, codec.encode_reply(reply, seq)])
                if self.script.restart_after and self.num_steps >= self.script.restart_after[0]:
                    self.script.restart_after.pop(0)
                    return

    def _answer(self, frame: bytes, epoch: int) -> list[tuple[m.Message, int]]:
        request, token, seq = codec.decode_request(frame)
        self.received.append(request)
        if self.script.die_at and isinstance(request, self.script.die_at[0]):
            self.script.die_at.pop(0)
            raise Death
        if refusal := self.script.refuse.pop(type(request), None):
            if isinstance(request, m.Exec) and refusal.scope == Scope.SESSION:
                self.sessions.pop(token, None)
            return [(refusal, seq)]
        try:
            return self._dispatch(request, token, seq, epoch)
        except Refusal as refused:
            if refused.reply.scope == Scope.SESSION:
                self.sessions.pop(token, None)
            return [(refused.reply, seq)]

    def _dispatch(
        self, request: m.Message, token: bytes, seq: int, epoch: int
    ) -> list[tuple[m.Message, int]]:
        script = self.script
        if isinstance(request, m.Hello):
            token = os.urandom(16)
            self.sessions[token] = FakeSession()
            welcome = m.Welcome(
                1, "0.1.0", os.getpid(), epoch, token, script.heartbeat_ms, script.lease_ms, "cpu"
            )
            return [(welcome, seq)]
        session = self.sessions.get(token)
        if session is None:
            raise Refusal(ErrorCode.UNKNOWN_SESSION, Scope.SESSION, "no such session")
        if isinstance(request, m.LoadModel):
            specs = [
                m.KvCacheSpec(
                    f"model.layers.{i}.self_attn.attn", 2, 16, "bfloat16", script.sliding_window
                )
                for i in range(script.num_layers)
            ]
            return [
                (m.LoadProgress(50, 100), seq),
                (m.ModelLoaded("qwen3", script.vocab_size, 1000, 5, specs), seq),
            ]
        if isinstance(request, m.ReserveMemory):
            return [(m.MemoryReserved(script.available_bytes), seq)]
        if isinstance(request, m.CreateCache):
            session.cache = request
            return [(m.CacheCreated(request.num_blocks, 4096), seq)]
        if isinstance(request, m.Ping):
            return [(m.Pong(), seq)]
        if isinstance(request, m.Goodbye):
            del self.sessions[token]
            return [(m.Farewell(), seq)]
        if isinstance(request, m.Exec):
            if request.sample_follows:
                session.waiting[seq] = request
                return []
            return [(self._step(session, request), seq)]
        assert isinstance(request, m.Sample)
        step = session.waiting.pop(request.exec_seq)
        step.grammar = request.grammar
        return [(self._step(session, step), request.exec_seq)]

    def _step(self, session: FakeSession, step: m.Exec) -> m.StepResult:
        self.num_steps += 1
        time.sleep(self.script.step_delay_s)
        if session.cache is None:
            raise Refusal(ErrorCode.OUT_OF_ORDER, Scope.SESSION, "there is no cache")
        for handle in step.finished:
            if session.requests.pop(handle, None) is None:
                raise invalid(f"finished handle {handle} is not in use")
        for new in step.new_requests:
            if new.handle in session.requests:
                raise invalid(f"handle {new.handle} is in use")
            tokens = np.frombuffer(new.token_ids, "<i4").tolist()
            if tokens[0] == self.script.die_token:
                raise Death
            session.requests[new.handle] = Request(
                tokens, new.num_prompt_tokens, list(new.block_ids[0]), new.sampling_params
            )
        for grown in step.new_blocks:
            session.requests[step.handles[grown.row]].blocks += grown.block_ids[0]
        counts = step.num_scheduled_tokens or [1] * len(step.handles)
        rows = zip(step.handles, step.num_computed_tokens, counts, strict=True)
        sampled = [self._row(session, *row) for row in rows]
        errors = []
        for row, handle in enumerate(step.handles):
            if session.requests[handle].tokens[0] == self.script.fail_token:
                sampled[row] = -1
                errors.append(m.RowError(row, "no token is allowed"))
        return m.StepResult(np.asarray(sampled, "<i4").tobytes(), None, [], [], errors, 1, 2)

    def _row(self, session: FakeSession, handle: int, computed: int, count: int) -> int:
        request = session.requests.get(handle)
        if request is None:
            raise invalid(f"handle {handle} is not in use")
        block_size = session.cache.block_size
        end = computed + count
        if end > len(request.tokens) or len(request.blocks) * block_size < end:
            raise invalid(f"handle {handle} runs past its tokens or blocks")
        if self.script.lost_token in request.tokens[computed:end]:
            raise Refusal(ErrorCode.OUT_OF_MEMORY, Scope.SESSION, "the step failed: no memory")
        for position in range(end):
            slot = (request.blocks[position // block_size], position % block_size)
            if slot[0] == 0 or slot[0] >= session.cache.num_blocks:
                raise invalid(f"block {slot[0]} does not exist")
            if position >= computed:
                session.kv[slot] = request.tokens[position]
            elif session.kv.get(slot) != request.tokens[position]:
                raise invalid(f"position {position} of handle {handle} is not in the cache")
        if end < len(request.tokens):
            return -1
        token = next_token(request.tokens, self.script)
        request.tokens.append(token)
        return token


def next_token(tokens: list[int], script: Script) -> int:
    """A token that depends on every token before it."""
    digest = hashlib.blake2b(np.asarray(tokens, "<i4").tobytes(), digest_size=4).digest()
    span = script.vocab_size - script.first_token
    return script.first_token + int.from_bytes(digest, "little") % span


def generate(prompt: list[int], count: int, script: Script) -> list[int]:
    """What the daemon must generate, computed without it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, script))
    return tokens[len(prompt) :]
