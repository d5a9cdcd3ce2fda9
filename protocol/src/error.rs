//! Errors as they travel: a closed set of codes, each with the scope of the damage.

use serde::{Deserialize, Serialize};

/// How much an error ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Scope {
    /// This message alone; the session goes on as if it had not been sent.
    Request,
    /// The session; it has to be opened again.
    Session,
    /// The daemon; it is about to stop.
    Daemon,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// How much it ends.
    pub scope: Scope,
    /// For people: what was wrong, the value, the limit, the knob to turn.
    pub message: String,
}

macro_rules! numbered {
    ($name:ty, $number:ty, { $($value:literal => $variant:ident,)* }) => {
        impl From<$name> for $number {
            fn from(value: $name) -> Self {
                match value { $(<$name>::$variant => $value,)* }
            }
        }

        impl TryFrom<$number> for $name {
            type Error = String;

            fn try_from(value: $number) -> Result<Self, Self::Error> {
                match value {
                    $($value => Ok(<$name>::$variant),)*
                    _ => Err(format!("{value} is not a {}", stringify!($name))),
                }
            }
        }
    };
}

numbered!(Scope, u8, { 0 => Request, 1 => Session, 2 => Daemon, });

/// The closed set of reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u16", try_from = "u16")]
pub enum ErrorCode {
    /// The bytes are not a message of this protocol, or a field is beyond its limit.
    BadMessage,
    /// The two sides share no protocol version.
    UnsupportedProtocol,
    /// The daemon has no session of this token: it was closed, or another daemon opened it.
    UnknownSession,
    /// The daemon serves as many sessions as it can.
    TooManySessions,
    /// The message is not legal at this point of the session.
    OutOfOrder,
    /// The session has as many steps in flight as it may.
    TooManySteps,
    /// The model's folder is missing, or may not be read.
    ModelNotFound,
    /// The model's architecture or format is not supported.
    UnsupportedModel,
    /// The model's files contradict each other or are damaged.
    InvalidModel,
    /// Weights or cache do not fit, or what a step needs beside them.
    OutOfMemory,
    /// The step breaks a rule of the protocol. The session cannot go on.
    InvalidStep,
    /// A feature that this daemon does not have.
    Unsupported,
    /// The device failed while it ran the step.
    StepFailed,
    /// The daemon is about to stop.
    ShuttingDown,
}

numbered!(ErrorCode, u16, {
    1 => BadMessage,
    2 => UnsupportedProtocol,
    3 => UnknownSession,
    4 => TooManySessions,
    5 => OutOfOrder,
    6 => TooManySteps,
    7 => ModelNotFound,
    8 => UnsupportedModel,
    9 => InvalidModel,
    10 => OutOfMemory,
    11 => InvalidStep,
    12 => Unsupported,
    13 => StepFailed,
    14 => ShuttingDown,
});
