//! The daemon's whole public interface: [`Request`] and [`Reply`].
//!
//! On the wire a message is one ZeroMQ frame holding one msgpack array:
//!
//! - a request: `[opcode, session, seq, body]`
//! - a reply: `[opcode, seq, body]`
//!
//! and `body` is an array of the fields in the order in which the struct declares them.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    CacheCreated, CreateCache, ErrorReply, Exec, Hello, LoadModel, LoadProgress, MemoryReserved,
    ModelLoaded, ReserveMemory, Sample, StatusReport, StepResult, Welcome,
};

/// Names a session. Drawn at random by the daemon, given to the frontend in [`Welcome`], and sent
/// with every later message: a session is never known by its ZeroMQ identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionToken(pub [u8; 16]);

/// A request with what it needs to be routed and answered.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestEnvelope {
    /// The sender's session; absent in [`Request::Hello`] and [`Request::Status`].
    pub session: Option<SessionToken>,
    /// Rises by one with each message of a session. Replies carry it back.
    pub seq: u64,
    /// The message.
    pub request: Request,
}

/// A reply with the `seq` of the request that it answers.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplyEnvelope {
    /// `seq` of the request. Results of steps come in the order of their requests.
    pub seq: u64,
    /// The message.
    pub reply: Reply,
}

macro_rules! messages {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[$variant_doc:meta])* $opcode:literal => $variant:ident $(($body:ty))?,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant $(($body))?,)*
        }

        impl $name {
            /// The first element of the message on the wire.
            #[must_use]
            pub fn opcode(&self) -> u8 {
                match self {
                    $(messages!(@pattern $variant $(, $body)?) => $opcode,)*
                }
            }

            /// The message's name, for logs and errors.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(messages!(@pattern $variant $(, $body)?) => stringify!($variant),)*
                }
            }

            fn serialize_body<T: SerializeTuple>(&self, tuple: &mut T) -> Result<(), T::Error> {
                match self {
                    $(messages!(@bind body $variant $(, $body)?) =>
                        tuple.serialize_element(messages!(@body body $($body)?)),)*
                }
            }

            fn next_body<'de, A: SeqAccess<'de>>(opcode: u8, seq: &mut A) -> Result<Self, A::Error> {
                match opcode {
                    $($opcode => messages!(@read seq $variant $(, $body)?),)*
                    _ => Err(A::Error::custom(format_args!("opcode {opcode} is not known"))),
                }
            }
        }
    };
    (@pattern $variant:ident) => { Self::$variant };
    (@pattern $variant:ident, $body:ty) => { Self::$variant(_) };
    (@bind $name:ident $variant:ident) => { Self::$variant };
    (@bind $name:ident $variant:ident, $body:ty) => { Self::$variant($name) };
    (@body $name:ident) => { &Empty {} };
    (@body $name:ident $body:ty) => { $name };
    (@read $seq:ident $variant:ident) => {{
        next::<Empty, A>($seq)?;
        Ok(Self::$variant)
    }};
    (@read $seq:ident $variant:ident, $body:ty) => { next($seq).map(Self::$variant) };
}

messages! {
    /// What a frontend may ask.
    Request {
        /// Opens a session. Answered by [`Reply::Welcome`].
        1 => Hello(Hello),
        /// Makes a model ready. Answered by any number of [`Reply::LoadProgress`], then
        /// [`Reply::ModelLoaded`]. Legal once in a session.
        2 => LoadModel(LoadModel),
        /// Asks for a share of the KV-cache memory. Answered by [`Reply::MemoryReserved`].
        /// Legal after `LoadModel`; a second one replaces the first until `CreateCache`.
        3 => ReserveMemory(ReserveMemory),
        /// Creates the session's cache. Answered by [`Reply::CacheCreated`]. Legal once.
        4 => CreateCache(CreateCache),
        /// One scheduler step. Answered by [`Reply::StepResult`]. Legal after `CreateCache`.
        5 => Exec(Exec),
        /// The grammar of an earlier `Exec` that said `sample_follows`. Not answered itself.
        6 => Sample(Sample),
        /// Renews the lease. Answered by [`Reply::Pong`].
        7 => Ping,
        /// Closes the session. Answered by [`Reply::Farewell`].
        8 => Goodbye,
        /// What the daemon is doing. Needs no session. Answered by [`Reply::StatusReport`].
        9 => Status,
    }
}

messages! {
    /// What the daemon answers.
    Reply {
        /// To `Hello`.
        1 => Welcome(Welcome),
        /// While a model loads.
        2 => LoadProgress(LoadProgress),
        /// To `LoadModel`.
        3 => ModelLoaded(ModelLoaded),
        /// To `ReserveMemory`.
        4 => MemoryReserved(MemoryReserved),
        /// To `CreateCache`.
        5 => CacheCreated(CacheCreated),
        /// To `Exec`.
        6 => StepResult(StepResult),
        /// To `Ping`.
        7 => Pong,
        /// To `Goodbye`.
        8 => Farewell,
        /// To `Status`.
        9 => StatusReport(StatusReport),
        /// To any request that cannot be served.
        10 => Error(ErrorReply),
    }
}

/// The body of a message without fields: an empty array.
#[derive(Serialize, Deserialize)]
struct Empty {}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(seq: &mut A) -> Result<T, A::Error> {
    seq.next_element()?
        .ok_or_else(|| A::Error::custom("the envelope is too short"))
}

impl Serialize for RequestEnvelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let session = self.session.as_ref().map_or(&[][..], |token| &token.0);
        let mut tuple = serializer.serialize_tuple(4)?;
        tuple.serialize_element(&self.request.opcode())?;
        tuple.serialize_element(serde_bytes::Bytes::new(session))?;
        tuple.serialize_element(&self.seq)?;
        self.request.serialize_body(&mut tuple)?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for RequestEnvelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Envelope;
        impl<'de> Visitor<'de> for Envelope {
            type Value = RequestEnvelope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[opcode, session, seq, body]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let opcode = next::<u8, A>(&mut seq)?;
                let session = next::<&serde_bytes::Bytes, A>(&mut seq)?;
                let session = match (session.len(), session.as_array()) {
                    (_, Some(token)) => Some(SessionToken(*token)),
                    (0, None) => None,
                    (length, None) => {
                        return Err(A::Error::invalid_length(
                            length,
                            &"16 bytes of session token",
                        ));
                    }
                };
                let number = next(&mut seq)?;
                let request = Request::next_body(opcode, &mut seq)?;
                Ok(RequestEnvelope {
                    session,
                    seq: number,
                    request,
                })
            }
        }
        deserializer.deserialize_tuple(4, Envelope)
    }
}

impl Serialize for ReplyEnvelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(3)?;
        tuple.serialize_element(&self.reply.opcode())?;
        tuple.serialize_element(&self.seq)?;
        self.reply.serialize_body(&mut tuple)?;
        tuple.end()
    }
}

impl<'de> Deserialize<'de> for ReplyEnvelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Envelope;
        impl<'de> Visitor<'de> for Envelope {
            type Value = ReplyEnvelope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("[opcode, seq, body]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let opcode = next::<u8, A>(&mut seq)?;
                let number = next(&mut seq)?;
                let reply = Reply::next_body(opcode, &mut seq)?;
                Ok(ReplyEnvelope { seq: number, reply })
            }
        }
        deserializer.deserialize_tuple(3, Envelope)
    }
}
