"""The session with the daemon: set-up, steps, heartbeats, and recovery when the daemon is lost.

One I/O thread opens the session and receives; the engine's main thread calls the public methods.

# Recovery
A lost connection (the daemon died, was upgraded, or forgot us) does not fail anything at first.
The thread connects again, starting a daemon if it may, says Hello and repeats the set-up messages
in their order. The new daemon knows none of our requests, so every outstanding step is answered
with `Lost`, and the session enters its next *generation*. Steps that were scheduled in an
older generation rely on a KV cache that is gone: they are never sent, and answered with `Lost`.

# Invariants
- `_lock` guards everything that both threads touch, and the order of messages on the wire.
- A future is never resolved while `_lock` is held.
- Each step's future is resolved exactly once.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec

from vllm_metal_rpc import messages
from vllm_metal_rpc.autostart import Autostart
from vllm_metal_rpc.client import Connection, Waker
from vllm_metal_rpc.errors import (
    ConnectionLost,
    DaemonError,
    DaemonUnavailable,
    ErrorCode,
    MetalRpcError,
    OutOfMemory,
    ProtocolViolation,
    Scope,
    TooManySessions,
    daemon_error,
)
from vllm_metal_rpc.messages import Message, StepResult
from vllm_metal_rpc.progress import LoadLog

logger = logging.getLogger("vllm.metal_rpc")

_CONNECT_TIMEOUT_S: Final = 5.0
_HELLO_TIMEOUT_S: Final = 10.0
_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 1.0
_FAREWELL_TIMEOUT_S: Final = 1.0
_LEFT_BEHIND: Final = (ErrorCode.UNKNOWN_SESSION, ErrorCode.SHUTTING_DOWN)


@dataclass(frozen=True)
class Lost:
    """The answer to a step that the daemon has lost, with the generation that begins."""

    generation: int


StepReply = StepResult | Lost


@dataclass(frozen=True)
class Options:
    """What a session needs to know.

    Attributes:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`.
        vllm_version: Told to the daemon.
        frontend: Told to the daemon: what people call this frontend.
        recovery_timeout_s: How long to look for a daemon before giving up.
        autostart: Starts a daemon when nothing listens; None to only connect.
    """

    endpoint: str
    vllm_version: str
    frontend: str
    recovery_timeout_s: float
    autostart: Autostart | None


@dataclass
class _SetUp:
    """A set-up message, kept to be repeated to the next daemon."""

    request: Message
    future: Future[Message] = field(default_factory=Future)
    reply: Message | None = None


@dataclass(eq=False)
class Step:
    """A step that waits for its answer.

    Attributes:
        finish: Turns the answer into the future's result.
        future: Resolved once, by the I/O thread.
        seq: Number of its `Exec`; 0 if it was never sent.
        sample_seq: Number of its `Sample`; 0 if there is none.
    """

    finish: Callable[[StepReply], Any]
    future: Future[Any] = field(default_factory=Future)
    seq: int = 0
    sample_seq: int = 0

    def resolve(self, reply: StepReply) -> None:
        """Answers the step."""
        try:
            result = self.finish(reply)
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Closing(Exception):
    """The session is to be closed."""


class Session:
    """A session that outlives the daemon's processes."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="metal-rpc-io", daemon=True)
        self._opened: Future[messages.Welcome] = Future()
        self._lock = threading.Lock()
        # Guarded by the lock.
        self._connection: Connection | None = None
        self._ready = False
        self._token = messages.NO_SESSION
        self._seq = 0
        self._generation = 0
        self._has_stepped = False
        self._steps: list[Step] = []
        self._set_ups: list[_SetUp] = []
        self._failure: BaseException | None = None
        self._on_failure: Callable[[], None] | None = None
        self._closing = False
        # Of the I/O thread alone.
        self._welcome: messages.Welcome | None = None
        self._last_sent_at = 0.0
        self._unanswered_since: float | None = None

    # ---- The main thread ----

    def open(self) -> messages.Welcome:
        """Starts the I/O thread and waits until a daemon has said Welcome.

        Raises:
            DaemonUnavailable: None could be reached or started in `recovery_timeout_s`.
            DaemonError: It did not want us.
        """
        self._thread.start()
        return self._opened.result()

    def set_up(self, request: Message) -> Message:
        """Sends a message that the next daemon has to see as well, and waits for its answer.

        Raises:
            DaemonError: The daemon refused it.
        """
        entry = _SetUp(request)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._set_ups.append(entry)
        self._waker.wake()
        return entry.future.result()

    def submit(
        self, request: messages.Exec, generation: int, finish: Callable[[StepReply], Any]
    ) -> Step:
        """Sends a step.

        Args:
            request: The message.
            generation: The generation in which it was scheduled.
            finish: Turns the answer into the future's result. Runs in the I/O thread.
        """
        step = Step(finish)
        with self._lock:
            failure, current = self._failure, self._generation
            if failure is None and generation == current:
                if self._ready:
                    step.seq = self._send(request)
                self._has_stepped = True
                self._steps.append(step)
                return step
        if failure is not None:
            step.future.set_exception(failure)
        else:
            step.resolve(Lost(current))
        return step

    def sample(self, step: Step, grammar: messages.GrammarBitmask | None) -> None:
        """Sends the grammar of a step that has said `sample_follows`, unless the step was lost."""
        with self._lock:
            if self._ready and step.seq and step in self._steps:
                step.sample_seq = self._send(messages.Sample(step.seq, grammar))

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Sets what is called, once and from any thread, when the session is beyond recovery."""
        with self._lock:
            self._on_failure = callback
            failed = self._failure is not None
        if failed:
            callback()

    def close(self) -> None:
        """Says Goodbye if there is somebody to hear it, and ends the I/O thread."""
        with self._lock:
            self._closing = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(_FAREWELL_TIMEOUT_S + _CONNECT_TIMEOUT_S)

    # ---- Sending, with the lock held ----

    def _send(self, request: Message) -> int:
        self._seq += 1
        frame = messages.encode_request(request, self._token, self._seq)
        try:
            cast(Connection, self._connection).send(frame)
        except ConnectionLost:
            # The I/O thread is about to notice, and answers what waits.
            self._waker.wake()
        self._last_sent_at = time.monotonic()
        return self._seq

    # ---- The I/O thread ----

    def _run(self) -> None:
        try:
            while True:
                self._connect_until_ready()
                try:
                    self._serve()
                except ConnectionLost as reason:
                    logger.warning("Lost the daemon (%s); looking for it", reason)
                    self._disconnect()
        except _Closing:
            self._say_goodbye()
            self._fail(DaemonUnavailable("the session was closed"), notify=False)
        except BaseException as error:
            self._fail(error, notify=True)
        finally:
            self._disconnect()

    def _connect_until_ready(self) -> None:
        """Opens a session and repeats the set-up, again and again until the time is over."""
        options = self._options
        deadline = time.monotonic() + options.recovery_timeout_s
        delay_s = _FIRST_DELAY_S
        if options.autostart is not None:
            options.autostart.lost()
        while True:
            try:
                self._open_session()
                return
            except ConnectionLost as error:
                reason: MetalRpcError = error
            except (OutOfMemory, TooManySessions) as error:
                # Others may still hold what the lost daemon's frontends are owed.
                if not self._opened.done():
                    raise
                reason = error
            self._disconnect()
            if time.monotonic() >= deadline:
                raise self._unavailable(reason)
            self._pause(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _open_session(self) -> None:
        options = self._options
        try:
            connection = Connection.open(options.endpoint, self._waker, _CONNECT_TIMEOUT_S)
        except ConnectionLost:
            if options.autostart is not None:
                options.autostart.ensure()
            raise
        if options.autostart is not None:
            options.autostart.connected()
        with self._lock:
            self._connection = connection
            self._token = messages.NO_SESSION
            self._seq = 0
        hello = messages.Hello(
            messages.PROTOCOL_VERSION,
            messages.PROTOCOL_VERSION,
            options.vllm_version,
            options.frontend,
            os.getpid(),
        )
        welcome = cast(messages.Welcome, self._exchange(hello, messages.Welcome))
        self._welcome = welcome
        with self._lock:
            self._token = welcome.session
        for entry in self._known_set_ups():
            self._repeat(entry)
        self._begin_generation(welcome)

    def _known_set_ups(self) -> list[_SetUp]:
        """The set-up messages that a daemon has answered before."""
        with self._lock:
            return [entry for entry in self._set_ups if entry.reply is not None]

    def _repeat(self, entry: _SetUp) -> None:
        reply = self._exchange(entry.request, type(cast(Message, entry.reply)))
        if isinstance(reply, messages.ModelLoaded):
            before = cast(messages.ModelLoaded, entry.reply)
            if reply.kv_cache_specs != before.kv_cache_specs:
                raise ProtocolViolation(
                    "the daemon came back with another KV-cache format for the same model; "
                    "restart this frontend"
                )

    def _begin_generation(self, welcome: messages.Welcome) -> None:
        with self._lock:
            if self._has_stepped:
                self._generation += 1
            lost, self._steps = self._steps, []
            self._ready = True
            generation = self._generation
        if self._opened.done():
            logger.info("The daemon is back (pid %d); %d steps lost", welcome.pid, len(lost))
        else:
            self._opened.set_result(welcome)
        for step in lost:
            step.resolve(Lost(generation))

    def _serve(self) -> None:
        """Receives until the connection is lost or the session is to be closed."""
        while True:
            self._run_set_ups()
            received = self._next_reply()
            if received is not None:
                self._deliver(*received)

    def _run_set_ups(self) -> None:
        """Sends the set-up messages that no daemon has answered yet."""
        with self._lock:
            pending = [entry for entry in self._set_ups if entry.reply is None]
        for entry in pending:
            try:
                entry.reply = self._exchange(entry.request, None)
            except DaemonError as error:
                with self._lock:
                    self._set_ups.remove(entry)
                entry.future.set_exception(error)
            else:
                entry.future.set_result(entry.reply)

    def _exchange(self, request: Message, expected: type[Message] | None) -> Message:
        """Sends a message of the set-up and waits for its answer, however long a load takes.

        Raises:
            DaemonError: The daemon refused it.
            ConnectionLost: The daemon went away or fell silent.
        """
        with self._lock:
            seq = self._send(request)
        self._unanswered_since = time.monotonic()
        progress = LoadLog(request)
        while True:
            received = self._next_reply()
            if received is None or received[1] != seq:
                continue
            reply = received[0]
            if isinstance(reply, messages.LoadProgress):
                progress.show(reply)
                continue
            if isinstance(reply, messages.ErrorReply):
                raise daemon_error(reply.code, reply.scope, reply.message)
            if expected is not None and not isinstance(reply, expected):
                raise ProtocolViolation(
                    f"{type(request).__name__} was answered by {type(reply).__name__}"
                )
            return reply

    def _next_reply(self) -> tuple[Message, int] | None:
        """Receives one message; keeps the lease while there is none.

        Returns:
            The message and its number, or None when there is something else to look at.
        """
        if self._closing:
            raise _Closing
        connection = cast(Connection, self._connection)
        frame = connection.receive(self._keep_lease())
        if frame is None:
            self._check_silence()
            return None
        self._unanswered_since = None
        try:
            reply, seq = messages.decode_reply(frame)
        except msgspec.DecodeError as error:
            raise ProtocolViolation(f"the daemon sent what is not a reply: {error}") from error
        if isinstance(reply, messages.Pong):
            return None
        if isinstance(reply, messages.ErrorReply) and (
            reply.code in _LEFT_BEHIND or reply.scope == Scope.DAEMON
        ):
            raise ConnectionLost(reply.message)
        return reply, seq

    def _keep_lease(self) -> float:
        """Sends a Ping if it is time for one; returns the seconds until the next."""
        heartbeat_s = self._welcome.heartbeat_ms / 1000 if self._welcome else _HELLO_TIMEOUT_S
        now = time.monotonic()
        due_s = self._last_sent_at + heartbeat_s - now
        if due_s > 0:
            return due_s
        if self._token:
            if self._unanswered_since is None:
                self._unanswered_since = now
            with self._lock:
                self._send(messages.Ping())
        return heartbeat_s

    def _check_silence(self) -> None:
        """Looks whether the daemon has left us without an answer for longer than a lease.

        Called when there is nothing to receive: answers that wait for a slow thread of ours do
        not count as silence.
        """
        lease_s = self._welcome.lease_ms / 1000 if self._welcome else _HELLO_TIMEOUT_S
        since = self._unanswered_since
        if since is not None and time.monotonic() - since > lease_s:
            raise ConnectionLost(f"the daemon was silent for {lease_s:g} s")

    def _deliver(self, reply: Message, seq: int) -> None:
        """Resolves the step that a reply answers."""
        if isinstance(reply, messages.ErrorReply):
            self._deliver_error(reply, seq)
            return
        step = self._take(lambda step: step.seq == seq)
        if not step or not isinstance(reply, StepResult):
            raise ProtocolViolation(f"unexpected {type(reply).__name__} for message {seq}")
        step[0].resolve(reply)

    def _deliver_error(self, reply: messages.ErrorReply, seq: int) -> None:
        error = daemon_error(reply.code, reply.scope, reply.message)
        whole_session = reply.scope == Scope.SESSION
        steps = self._take(lambda step: whole_session or seq in (step.seq, step.sample_seq))
        for step in steps:
            step.future.set_exception(error)
        if not steps:
            if whole_session:
                raise error
            logger.error("The daemon refused message %d: %s", seq, error)

    def _take(self, chosen: Callable[[Step], bool]) -> list[Step]:
        """Removes the chosen steps from those that wait."""
        with self._lock:
            taken = [step for step in self._steps if chosen(step)]
            self._steps = [step for step in self._steps if step not in taken]
        return taken

    def _pause(self, seconds: float) -> None:
        if self._closing:
            raise _Closing
        self._waker.wait(seconds)
        if self._closing:
            raise _Closing

    def _unavailable(self, reason: MetalRpcError) -> DaemonUnavailable:
        options = self._options
        hint = (
            "METAL_RPC_AUTOSTART=0, so none was started"
            if options.autostart is None
            else f"its log is {options.autostart.log_path}"
        )
        return DaemonUnavailable(
            f"no daemon on {options.endpoint} for {options.recovery_timeout_s:g} s "
            f"(METAL_RPC_RECOVERY_TIMEOUT_S): {reason}; {hint}"
        )

    # ---- Ends ----

    def _disconnect(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            self._ready = False
        self._welcome = None
        self._unanswered_since = None
        if connection is not None:
            connection.close()

    def _say_goodbye(self) -> None:
        if not self._ready or self._connection is None:
            return
        with self._lock:
            self._send(messages.Goodbye())
        deadline = time.monotonic() + _FAREWELL_TIMEOUT_S
        try:
            while (remaining_s := deadline - time.monotonic()) > 0:
                frame = self._connection.receive(remaining_s)
                if frame is not None and isinstance(
                    messages.decode_reply(frame)[0], messages.Farewell
                ):
                    return
        except MetalRpcError:
            return

    def _fail(self, error: BaseException, *, notify: bool) -> None:
        """Gives up: everything that waits, and everything to come, gets the error."""
        with self._lock:
            self._failure = error
            self._ready = False
            futures: list[Future[Any]] = [step.future for step in self._steps]
            futures += [entry.future for entry in self._set_ups]
            self._steps = []
            callback = self._on_failure
        for future in (*futures, self._opened):
            if not future.done():
                future.set_exception(error)
        if notify:
            logger.error("The session with the daemon has failed: %s", error)
            if callback is not None:
                callback()
