//! ZMTP 3.0, as much of it as messages of one frame need: greeting, `READY`, frames.
//!
//! # Source
//! <https://rfc.zeromq.org/spec/23/>; `PING` and `PONG` are of <https://rfc.zeromq.org/spec/37/>:
//! libzmq sends a `PING`, if it is told to, whatever version its peer has.

use std::io::{self, IoSlice};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::reader::FrameReader;

pub(super) const GREETING_BYTES: usize = 64;
/// Flags and a length of eight bytes.
pub(super) const MAX_HEADER_BYTES: usize = 9;
/// Bytes of the largest command that is read: `READY` with a socket type, an identity of 255
/// bytes, and some room.
pub(super) const MAX_COMMAND_BYTES: usize = 512;
/// Bytes of a `PING` that come back.
const MAX_CONTEXT_BYTES: usize = 16;

pub(super) const MORE: u8 = 1;
pub(super) const LONG: u8 = 2;
pub(super) const COMMAND: u8 = 4;

const READY: &[u8] = b"\x05READY";
const PING: &[u8] = b"\x04PING";
const PONG: &[u8] = b"\x04PONG";

/// Why a peer is not understood.
#[derive(Debug, thiserror::Error)]
pub enum ZmtpError {
    /// It is gone, after a whole frame.
    #[error("it closed the connection")]
    Ended,
    /// It is gone in the middle of something.
    #[error("it closed the connection in the middle of a frame")]
    Cut,
    /// It is no ZeroMQ socket, or another version or mechanism.
    #[error("its greeting is not that of ZMTP 3 with NULL security")]
    Greeting,
    /// It does not go on as a ZeroMQ socket does.
    #[error("it did not say READY")]
    NotReady,
    /// It is a socket of another kind.
    #[error("it is a socket of type {theirs:?}, which does not speak to {ours}")]
    SocketType {
        /// Its type, as it says.
        theirs: String,
        /// Ours.
        ours: &'static str,
    },
    /// It sets flags that nobody has defined.
    #[error("it sent a frame with flags {0:#04x}, which ZMTP 3.0 does not have")]
    Flags(u8),
    /// It announces more than it may send.
    #[error("it announced a frame of {bytes} bytes, the most is {limit}")]
    TooLong {
        /// What it announced.
        bytes: u64,
        /// What it may send.
        limit: usize,
    },
    /// The operating system says so.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What kind of socket an end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketType {
    Router,
    Dealer,
}

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            Self::Router => "ROUTER",
            Self::Dealer => "DEALER",
        }
    }

    /// What the other end has to be.
    fn counterpart(self) -> Self {
        match self {
            Self::Router => Self::Dealer,
            Self::Dealer => Self::Router,
        }
    }
}

/// A frame that leaves. Its body is never copied.
#[derive(Debug)]
pub(super) struct Frame {
    header: [u8; MAX_HEADER_BYTES],
    header_bytes: usize,
    body: Vec<u8>,
}

impl Frame {
    /// A message.
    pub(super) fn message(body: Vec<u8>) -> Self {
        Self::new(0, body)
    }

    /// The answer to a `PING`.
    pub(super) fn pong(context: &[u8]) -> Self {
        Self::new(COMMAND, [PONG, context].concat())
    }

    fn new(flags: u8, body: Vec<u8>) -> Self {
        let mut header = [0; MAX_HEADER_BYTES];
        let header_bytes = match u8::try_from(body.len()) {
            Ok(len) => {
                header[..2].copy_from_slice(&[flags, len]);
                2
            }
            Err(_) => {
                header[0] = flags | LONG;
                header[1..].copy_from_slice(&(body.len() as u64).to_be_bytes());
                MAX_HEADER_BYTES
            }
        };
        Self {
            header,
            header_bytes,
            body,
        }
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        self.header_bytes + self.body.len()
    }

    /// What is left of it when `sent` bytes are gone.
    pub(super) fn rest(&self, sent: usize) -> [IoSlice<'_>; 2] {
        let header = &self.header[sent.min(self.header_bytes)..self.header_bytes];
        let body = &self.body[sent.saturating_sub(self.header_bytes)..];
        [IoSlice::new(header), IoSlice::new(body)]
    }

    /// Writes it to whoever reads.
    ///
    /// # Errors
    /// If the connection is lost.
    pub(super) async fn write<W>(&self, writer: &mut W) -> Result<(), ZmtpError>
    where
        W: AsyncWrite + Unpin,
    {
        Ok(writer.write_all(&self.to_bytes()).await?)
    }

    /// Header and body in one.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        [&self.header[..self.header_bytes], &self.body].concat()
    }
}

/// Greets the other side, without security of ZeroMQ's own. Whatever identity it chooses is of no
/// consequence.
///
/// # Errors
/// [`ZmtpError`].
pub(super) async fn greet<S>(
    stream: &mut S,
    reader: &mut FrameReader,
    ours: SocketType,
) -> Result<(), ZmtpError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&greeting()).await?;
    check_greeting(&reader.exact(stream).await?)?;
    stream.write_all(&ready(ours)).await?;
    let (flags, body) = reader.frame(stream, MAX_COMMAND_BYTES).await?;
    let properties = body.strip_prefix(READY).filter(|_| flags & COMMAND != 0);
    check_ready(properties.ok_or(ZmtpError::NotReady)?, ours)
}

/// What a `PING` wants back, if this command is one.
pub(super) fn ping_context(command: &[u8]) -> Option<&[u8]> {
    // Between the two is for how long it will be silent at most, in tenths of seconds.
    let context = command.strip_prefix(PING)?.get(2..)?;
    Some(&context[..context.len().min(MAX_CONTEXT_BYTES)])
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn check_greeting(theirs: &[u8; GREETING_BYTES]) -> Result<(), ZmtpError> {
    let ours = greeting();
    let is_zmtp_3 = theirs[0] == ours[0] && theirs[9] == ours[9] && theirs[10] >= ours[10];
    match is_zmtp_3 && theirs[12..32] == ours[12..32] {
        true => Ok(()),
        false => Err(ZmtpError::Greeting),
    }
}

fn ready(ours: SocketType) -> Vec<u8> {
    let name = ours.name();
    let len = u32::try_from(name.len()).expect("a short name");
    let property = [&b"\x0bSocket-Type"[..], &len.to_be_bytes(), name.as_bytes()];
    let body = [READY, &property.concat()].concat();
    let len = u8::try_from(body.len()).expect("a short name");
    [&[COMMAND, len][..], &body].concat()
}

/// Checks the properties of a `READY`: that it names the socket that has to be there.
fn check_ready(mut properties: &[u8], ours: SocketType) -> Result<(), ZmtpError> {
    while !properties.is_empty() {
        let (name, value, rest) = property(properties).ok_or(ZmtpError::NotReady)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            if value == ours.counterpart().name().as_bytes() {
                return Ok(());
            }
            return Err(ZmtpError::SocketType {
                theirs: String::from_utf8_lossy(value).into_owned(),
                ours: ours.name(),
            });
        }
        properties = rest;
    }
    Err(ZmtpError::NotReady)
}

/// The first property: its name, its value, and those behind it.
fn property(properties: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&len, rest) = properties.split_first()?;
    let (name, rest) = rest.split_at_checked(len.into())?;
    let (len, rest) = rest.split_first_chunk()?;
    let len = usize::try_from(u32::from_be_bytes(*len)).ok()?;
    let (value, rest) = rest.split_at_checked(len)?;
    Some((name, value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greeted(theirs: &[u8]) -> Result<(), ZmtpError> {
        let (mut ours, mut other) = tokio::io::duplex(4096);
        other.write_all(theirs).await.expect("there is room");
        other.shutdown().await.expect("it is open");
        greet(&mut ours, &mut FrameReader::new(), SocketType::Router).await
    }

    /// As libzmq's: another minor version, and an identity.
    fn libzmq() -> Vec<u8> {
        let mut greeting = greeting();
        greeting[11] = 1;
        let body = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x02id";
        let len = u8::try_from(body.len()).expect("it is short");
        [&greeting[..], &[COMMAND, len], body].concat()
    }

    #[tokio::test]
    async fn two_sockets_greet_each_other() {
        let (mut router, mut dealer) = tokio::io::duplex(1024);
        let (mut first, mut second) = (FrameReader::new(), FrameReader::new());
        let (ours, theirs) = tokio::join!(
            greet(&mut router, &mut first, SocketType::Router),
            greet(&mut dealer, &mut second, SocketType::Dealer)
        );
        ours.expect("the other side is a socket");
        theirs.expect("the other side is a socket");
        greeted(&libzmq()).await.expect("it is a socket, too");
    }

    #[tokio::test]
    async fn whatever_else_connects_is_refused() {
        let [curve, old, http] = [
            (12, &b"CURVE"[..]),
            (10, &[1]),
            (0, b"GET / HTTP/1.1\r\nHost: localhost\r\n"),
        ]
        .map(|(at, bytes)| {
            let mut bent = libzmq();
            bent[at..at + bytes.len()].copy_from_slice(bytes);
            bent
        });
        for bent in [curve, old, http] {
            let error = greeted(&bent).await.expect_err("it is no socket of ours");
            assert!(matches!(error, ZmtpError::Greeting), "{error}");
        }
        let whole = libzmq();
        for len in 0..whole.len() {
            let error = greeted(&whole[..len]).await.expect_err("it is cut");
            assert!(
                matches!(error, ZmtpError::Ended | ZmtpError::Cut),
                "{len}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn a_peer_has_to_say_what_it_is() {
        let after_greeting = |frame: &[u8]| [&greeting()[..], frame].concat();
        let mut request = libzmq();
        let at = request.len() - b"DEALER\x08Identity\x00\x00\x00\x02id".len();
        request[at..at + 6].copy_from_slice(b"PUSH\x00\x00");
        let error = greeted(&request).await.expect_err("it is no dealer");
        assert!(matches!(error, ZmtpError::SocketType { .. }), "{error}");
        for frame in [
            &b"\x00\x06\x05READY"[..],
            b"\x04\x06\x05READY",
            b"\x04\x07\x05ERROR\x00",
            b"\x04\x12\x05READY\x0bSocket-Type",
            b"\x04\x16\x05READY\x0bSocket-Type\xff\xff\xff\xff",
        ] {
            let error = greeted(&after_greeting(frame)).await;
            let error = error.expect_err("it does not say what it is");
            assert!(matches!(error, ZmtpError::NotReady), "{frame:?}: {error}");
        }
        let long = [&[COMMAND | LONG][..], &u64::MAX.to_be_bytes()].concat();
        let error = greeted(&after_greeting(&long)).await;
        let error = error.expect_err("no command is so long");
        assert!(matches!(error, ZmtpError::TooLong { .. }), "{error}");
    }

    #[test]
    fn the_rest_of_a_frame_is_what_was_not_sent() {
        for len in [0, 1, 255, 256, 700] {
            let frame = Frame::message(vec![7; len]);
            let whole = frame.to_bytes();
            assert_eq!(whole.len(), frame.len());
            for sent in 0..=whole.len() {
                let rest = frame.rest(sent).map(|slice| slice.to_vec()).concat();
                assert_eq!(rest, whole[sent..]);
            }
        }
    }

    #[test]
    fn a_ping_gets_its_context_back() {
        assert_eq!(ping_context(b"\x04PING\x00\x10abc"), Some(&b"abc"[..]));
        assert_eq!(ping_context(b"\x04PING\x00\x10"), Some(&b""[..]));
        let long = [&b"\x04PING\x00\x10"[..], &[7; 100]].concat();
        assert_eq!(ping_context(&long), Some(&[7; MAX_CONTEXT_BYTES][..]));
        for command in [&b"\x04PING\x00"[..], b"\x04PONG\x00\x10", b""] {
            assert_eq!(ping_context(command), None);
        }
    }
}
