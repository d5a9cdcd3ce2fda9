"""Opens the session with a daemon, and opens it again with the next one.

Each attempt connects, says Hello and repeats the set-up messages in their order. Between attempts
there is a growing pause, and a daemon is started if that is allowed. At the start of a frontend a
daemon that cannot be started ends the wait at once, because somebody is looking; later it may be
an upgrade half done, and is tried again until the time is over.
"""

import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, cast

from vllm_metal_rpc import messages
from vllm_metal_rpc.autostart import Autostart
from vllm_metal_rpc.client import Waker
from vllm_metal_rpc.errors import (
    ConnectionLost,
    DaemonUnavailable,
    MetalRpcError,
    OutOfMemory,
    TooManySessions,
)
from vllm_metal_rpc.link import Closing, Link, Server
from vllm_metal_rpc.messages import Message
from vllm_metal_rpc.outage import Outage

_FIRST_DELAY_S: Final = 0.02
_LONGEST_DELAY_S: Final = 0.5


@dataclass(frozen=True)
class Options:
    """What a session needs to know.

    Attributes:
        server: Where the daemon is.
        vllm_version, frontend, weight: Told to the daemon: see `Hello`.
        recovery_timeout_s: How long to look for a daemon before giving up.
        autostart: Starts a daemon when nothing listens; None to only connect.
    """

    server: Server
    vllm_version: str
    frontend: str
    weight: int
    recovery_timeout_s: float
    autostart: Autostart | None


@dataclass(eq=False)
class SetUp:
    """A set-up message, kept to be repeated to the next daemon.

    Attributes:
        request: The message.
        expected: Type of its answer.
        future: Resolved by the first answer.
        reply: That answer.
    """

    request: Message
    expected: type[Message]
    future: Future[Message] = field(default_factory=Future)
    reply: Message | None = None


class Opener:
    """Makes links with a session whose set-up is done. Used by the I/O thread alone."""

    def __init__(self, options: Options, waker: Waker, closing: threading.Event) -> None:
        self._options = options
        self._waker = waker
        self._closing = closing
        self._last: Link | None = None

    def open(self, set_ups: list[SetUp], outage: Outage | None) -> Link:
        """Opens the session and repeats the set-up, again and again until the time is over.

        Args:
            set_ups: What the last daemon has answered.
            outage: The loss that makes it necessary; None at the start.

        Raises:
            DaemonUnavailable: There was no daemon for `recovery_timeout_s`.
            DaemonError: It does not want us.
            Closing: Nobody wants the session any more.
        """
        deadline = time.monotonic() + self._options.recovery_timeout_s
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return self._attempt(set_ups, outage)
            except ConnectionLost as error:
                reason: MetalRpcError = error
            except (DaemonUnavailable, OutOfMemory, TooManySessions) as error:
                # Others may still hold what the lost daemon's frontends are owed.
                if outage is None:
                    raise
                reason = error
            if time.monotonic() >= deadline:
                raise self._unavailable(reason, outage)
            self._waker.wait(delay_s)
            if self._closing.is_set():
                raise Closing
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _attempt(self, set_ups: list[SetUp], outage: Outage | None) -> Link:
        options = self._options
        if outage is not None:
            outage.num_attempts += 1
        try:
            link = Link.connect(options.server, self._waker, self._closing)
        except ConnectionLost:
            if options.autostart is not None:
                options.autostart.ensure()
            raise
        try:
            link.say_hello(self._hello())
            if self._last is not None:
                link.bury(self._last)
            self._last = link
            if outage is not None:
                outage.connected()
            for entry in set_ups:
                link.repeat(entry.request, cast(Message, entry.reply))
        except BaseException:
            link.close()
            raise
        if options.autostart is not None:
            options.autostart.connected()
        return link

    def _hello(self) -> messages.Hello:
        options = self._options
        return messages.Hello(
            messages.PROTOCOL_VERSION,
            messages.PROTOCOL_VERSION,
            options.vllm_version,
            options.frontend,
            os.getpid(),
            options.weight,
        )

    def _unavailable(self, reason: MetalRpcError, outage: Outage | None) -> DaemonUnavailable:
        options = self._options
        lost = ""
        if outage is not None:
            lost = f" after the last one was lost ({outage.reason}), {outage.num_attempts} attempts"
        hint = (
            "none was started (METAL_RPC_AUTOSTART=0, or TCP)"
            if options.autostart is None
            else f"its log is {options.autostart.log_path}"
        )
        return DaemonUnavailable(
            f"no daemon on {options.server.endpoint} for {options.recovery_timeout_s:g} s "
            f"(METAL_RPC_RECOVERY_TIMEOUT_S){lost}: {reason}; {hint}"
        )
