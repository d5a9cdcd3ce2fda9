"""Exceptions of the shim, and the daemon's error codes (protocol/src/error.rs)."""

from enum import IntEnum
from typing import ClassVar


class MetalRpcError(Exception):
    """Base of everything that the shim raises by itself."""


class DaemonUnavailable(MetalRpcError):
    """No daemon could be reached, or the one that was did not come back in time."""


class ConnectionLost(MetalRpcError):
    """The session ended without our wish: the daemon died, stopped or forgot us."""


class DaemonLeft(ConnectionLost):
    """The daemon has said that it does not know us, or is about to stop."""


class StepLost(ConnectionLost):
    """The daemon has ended the session because a step of it failed."""


class Unauthorized(MetalRpcError):
    """One of the two sides of a TCP connection does not hold the token."""


class ProtocolViolation(MetalRpcError):
    """The daemon sent something that the protocol does not allow at this point."""


class UnsupportedFeature(MetalRpcError):
    """A scheduler step carries something that the protocol has no field for."""


class Scope(IntEnum):
    """How much an error ends."""

    REQUEST = 0
    SESSION = 1
    DAEMON = 2


class ErrorCode(IntEnum):
    """The closed set of reasons."""

    BAD_MESSAGE = 1
    UNSUPPORTED_PROTOCOL = 2
    UNKNOWN_SESSION = 3
    TOO_MANY_SESSIONS = 4
    OUT_OF_ORDER = 5
    TOO_MANY_STEPS = 6
    MODEL_NOT_FOUND = 7
    UNSUPPORTED_MODEL = 8
    INVALID_MODEL = 9
    OUT_OF_MEMORY = 10
    INVALID_STEP = 11
    UNSUPPORTED = 12
    STEP_FAILED = 13
    SHUTTING_DOWN = 14


class DaemonError(MetalRpcError):
    """The daemon refused a message. The text is the daemon's own.

    Each code has a subclass, which `daemon_error` picks.
    """

    code: ClassVar[ErrorCode]

    def __init__(self, message: str, scope: Scope) -> None:
        super().__init__(message)
        self.scope = scope


class BadMessage(DaemonError):
    """The bytes were not a message, or a field was beyond its limit."""

    code = ErrorCode.BAD_MESSAGE


class UnsupportedProtocol(DaemonError):
    """The two sides share no protocol version."""

    code = ErrorCode.UNSUPPORTED_PROTOCOL


class UnknownSession(DaemonError):
    """The daemon has no session of this token."""

    code = ErrorCode.UNKNOWN_SESSION


class TooManySessions(DaemonError):
    """The daemon serves as many sessions as it can."""

    code = ErrorCode.TOO_MANY_SESSIONS


class OutOfOrder(DaemonError):
    """The message was not legal at this point of the session."""

    code = ErrorCode.OUT_OF_ORDER


class TooManySteps(DaemonError):
    """The session had as many steps in flight as it may."""

    code = ErrorCode.TOO_MANY_STEPS


class ModelNotFound(DaemonError):
    """The model's folder is missing, or may not be read."""

    code = ErrorCode.MODEL_NOT_FOUND


class UnsupportedModel(DaemonError):
    """The model's architecture or format is not supported."""

    code = ErrorCode.UNSUPPORTED_MODEL


class InvalidModel(DaemonError):
    """The model's files contradict each other or are damaged."""

    code = ErrorCode.INVALID_MODEL


class OutOfMemory(DaemonError):
    """Weights or cache do not fit, or what a step needs beside them."""

    code = ErrorCode.OUT_OF_MEMORY


class InvalidStep(DaemonError):
    """The step broke a rule of the protocol; the session cannot go on."""

    code = ErrorCode.INVALID_STEP


class Unsupported(DaemonError):
    """The daemon does not have the feature."""

    code = ErrorCode.UNSUPPORTED


class StepFailed(DaemonError):
    """The device failed while it ran the step."""

    code = ErrorCode.STEP_FAILED


class ShuttingDown(DaemonError):
    """The daemon is about to stop."""

    code = ErrorCode.SHUTTING_DOWN


_BY_CODE = {error.code: error for error in DaemonError.__subclasses__()}


def daemon_error(code: int, scope: int, message: str) -> MetalRpcError:
    """Turns an error reply into its exception; a code of a newer daemon into the base class."""
    try:
        return _BY_CODE[ErrorCode(code)](message, Scope(scope))
    except ValueError:
        return ProtocolViolation(f"the daemon answered with error code {code}: {message}")
