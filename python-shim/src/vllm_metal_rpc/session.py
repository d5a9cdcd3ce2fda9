"""The session with the daemon, across the daemon's restarts.

One I/O thread opens the session and receives; the engine's main thread calls the public methods,
and receives itself while it waits for a step (`receiving.py`).

# Recovery
A lost connection (the daemon died, was upgraded, or forgot us) does not fail anything at first.
The thread opens the session again (`opening.py`). The new daemon knows none of our requests, so
every outstanding step is answered with `Lost`, and the session enters its next *generation*. Steps
that were scheduled in an older generation rely on a KV cache that is gone: they are never sent, and
answered with `Lost`.

A step that fails (the device could not run it, memory ran out) ends its session, because nobody
knows what it has written to the KV cache. It may have failed for what others did, and may pass a
moment later: so it counts as a loss too, and the scheduler judges whose fault it is
(`scheduler.py`). A step that breaks a rule would break it again: that ends the engine.

# Invariants
- `_lock` guards everything that both threads touch, and the order of steps on the wire.
- A future is never resolved while `_lock` is held.
- Each step's future is resolved exactly once.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from vllm_metal_rpc import messages
from vllm_metal_rpc.client import Waker
from vllm_metal_rpc.errors import (
    ConnectionLost,
    DaemonError,
    DaemonLeft,
    DaemonUnavailable,
    OutOfMemory,
    ProtocolViolation,
    Scope,
    StepFailed,
    StepLost,
    daemon_error,
)
from vllm_metal_rpc.link import Closing, Link
from vllm_metal_rpc.messages import Message, StepResult
from vllm_metal_rpc.opening import Opener, Options, SetUp
from vllm_metal_rpc.outage import Outage
from vllm_metal_rpc.receiving import Receiving, StepFuture

logger = logging.getLogger("vllm.metal_rpc")

_CLOSE_TIMEOUT_S: Final = 5.0

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True)
class Lost:
    """The answer to a step that the daemon has lost.

    Attributes:
        generation: The generation that begins.
        crash: What has happened, if a step may be the cause.
    """

    generation: int
    crash: str = ""


StepReply = StepResult | Lost


@dataclass(eq=False)
class Step:
    """A step that waits for its answer.

    Attributes:
        finish: Turns the answer into the future's result.
        future: Resolved once.
        seq: Number of its `Exec`; 0 if it was never sent.
        sample_seq: Number of its `Sample`; 0 if there is none.
    """

    finish: Callable[[StepReply], Any]
    future: Future[Any]
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


class Session:
    """A session that outlives the daemon's processes."""

    def __init__(self, options: Options) -> None:
        self._waker = Waker()
        self._closing = threading.Event()
        self._receiving = Receiving()
        self._opener = Opener(options, self._waker, self._closing)
        self._opened: Future[messages.Welcome] = Future()
        self._thread = threading.Thread(target=self._run, name="metal-rpc-io", daemon=True)
        # Of whoever receives.
        self._outage: Outage | None = None
        self._lock = threading.Lock()
        # Guarded by the lock. There is a link only while the session can take steps.
        self._link: Link | None = None
        self._generation = 0
        self._has_stepped = False
        self._steps: list[Step] = []
        self._set_ups: list[SetUp] = []
        self._failure: BaseException | None = None
        self._on_failure: Callable[[], None] | None = None

    # ---- The main thread ----

    def open(self) -> messages.Welcome:
        """Starts the I/O thread and waits until a daemon has said Welcome.

        Raises:
            DaemonUnavailable: None could be reached or started in `recovery_timeout_s`.
            DaemonError: It did not want us.
        """
        self._thread.start()
        return self._opened.result()

    def set_up(self, request: Message, expected: type[_M]) -> _M:
        """Sends a message that the next daemon has to see as well, and waits for its answer.

        Raises:
            DaemonError: The daemon refused it.
        """
        entry = SetUp(request, expected)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._set_ups.append(entry)
        self._waker.wake()
        return cast(_M, entry.future.result())

    def submit(
        self, request: messages.Exec, generation: int, finish: Callable[[StepReply], Any]
    ) -> Step:
        """Sends a step.

        Args:
            request: The message.
            generation: The generation in which it was scheduled.
            finish: Turns the answer into the future's result, in the thread that receives it.
        """
        step = Step(finish, StepFuture(self._receive_until_done))
        with self._lock:
            failure, current = self._failure, self._generation
            if failure is None and generation == current:
                if self._link is not None:
                    step.seq = self._link.send(request)
                self._has_stepped = True
                self._steps.append(step)
                self._receiving.step_left()
                return step
        if failure is not None:
            step.future.set_exception(failure)
        else:
            step.resolve(Lost(current))
        return step

    def sample(self, step: Step, grammar: messages.GrammarBitmask | None) -> None:
        """Sends the grammar of a step that has said `sample_follows`, unless the step was lost."""
        with self._lock:
            if self._link is not None and step.seq and step in self._steps:
                step.sample_seq = self._link.send(messages.Sample(step.seq, grammar))

    def on_failure(self, callback: Callable[[], None]) -> None:
        """Sets what is called, once and from any thread, when the session is beyond recovery."""
        with self._lock:
            self._on_failure = callback
            failed = self._failure is not None
        if failed:
            callback()

    def close(self) -> None:
        """Says Goodbye if there is somebody to hear it, and ends the I/O thread."""
        self._closing.set()
        self._waker.wake()
        self._receiving.wake()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _receive_until_done(self, future: Future[Any]) -> None:
        self._receiving.receive_until_done(future, lambda: self._link, self._receive)

    # ---- The I/O thread ----

    def _run(self) -> None:
        link: Link | None = None
        try:
            while True:
                link = self._opener.open(self._answered_set_ups(), self._outage)
                self._begin_generation(link)
                try:
                    self._serve(link)
                except ConnectionLost as reason:
                    self._lose(link, reason)
        except Closing:
            if link is not None and self._link is link:
                link.say_goodbye()
            self._fail(DaemonUnavailable("the session was closed"), notify=False)
        except BaseException as error:
            self._fail(error, notify=True)
        finally:
            if link is not None:
                self._drop(link)

    def _answered_set_ups(self) -> list[SetUp]:
        with self._lock:
            return [entry for entry in self._set_ups if entry.reply is not None]

    def _begin_generation(self, link: Link) -> None:
        with self._lock:
            if self._has_stepped:
                self._generation += 1
            lost, self._steps = self._steps, []
            self._link = link
            generation = self._generation
        welcome = link.welcome
        crash = ""
        if self._outage is None:
            self._opened.set_result(welcome)
        else:
            logger.info("The daemon is back (pid %d); %d steps lost", welcome.pid, len(lost))
            self._outage.ready(len(lost))
            if self._outage.is_crash and any(step.seq for step in lost):
                crash = self._outage.reason
        for step in lost:
            step.resolve(Lost(generation, crash))

    def _serve(self, link: Link) -> None:
        """Receives until the connection is lost or the session is to be closed."""
        while True:
            self._run_set_ups(link)
            self._receiving.receive_if_nobody_does(link, self._receive)

    def _receive(self, link: Link) -> None:
        received = link.receive()
        if received is not None:
            self._deliver(*received)

    def _run_set_ups(self, link: Link) -> None:
        """Sends the set-up messages that no daemon has answered yet."""
        with self._lock:
            pending = [entry for entry in self._set_ups if entry.reply is None]
        for entry in pending:
            try:
                entry.reply = link.exchange(entry.request, entry.expected)
            except DaemonError as error:
                with self._lock:
                    self._set_ups.remove(entry)
                entry.future.set_exception(error)
            else:
                entry.future.set_result(entry.reply)

    def _deliver(self, reply: Message, seq: int) -> None:
        """Resolves the step that a reply answers."""
        if isinstance(reply, messages.ErrorReply):
            self._deliver_error(reply, seq)
            return
        steps = self._take(lambda step: step.seq == seq)
        if not steps or not isinstance(reply, StepResult):
            raise ProtocolViolation(f"unexpected {type(reply).__name__} for message {seq}")
        if self._outage is not None and self._outage.num_lost:
            self._outage.answered()
            self._outage.num_lost = 0
        steps[0].resolve(reply)

    def _deliver_error(self, reply: messages.ErrorReply, seq: int) -> None:
        error = daemon_error(reply.code, reply.scope, reply.message)
        whole_session = reply.scope == Scope.SESSION
        if whole_session and isinstance(error, (StepFailed, OutOfMemory)):
            raise StepLost(reply.message)
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

    # ---- Ends ----

    def _lose(self, link: Link, reason: ConnectionLost) -> None:
        logger.warning("Lost the session with the daemon (%s); opening another", reason)
        is_crash = not isinstance(reason, DaemonLeft)
        self._outage = Outage(str(reason), is_crash, link.silent_s())
        self._drop(link)

    def _drop(self, link: Link) -> None:
        with self._lock:
            self._link = None
        link.close()

    def _fail(self, error: BaseException, *, notify: bool) -> None:
        """Gives up: everything that waits, and everything to come, gets the error."""
        with self._lock:
            self._failure = error
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
