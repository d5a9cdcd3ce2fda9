//! From the bytes of a connection to its messages, however they are split on their way.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::zmtp::{
    COMMAND, LONG, MAX_COMMAND_BYTES, MAX_HEADER_BYTES, MORE, ZmtpError, ping_context,
};

/// Bytes that are read at once, and the most that is reserved for a body before any of it is here.
const CHUNK_BYTES: usize = 16 << 10;

/// What a peer has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A message of one frame.
    Message(Vec<u8>),
    /// It wants to hear this back.
    Ping(Vec<u8>),
}

/// What is known of a frame from its header.
#[derive(Clone, Copy, Debug)]
struct Announced {
    flags: u8,
    bytes: usize,
}

/// Reads one side of a connection. It keeps what it has when a read is dropped while it waits.
///
/// # Invariants
/// - Memory is taken for what is here and at most as much again, never for what is announced.
#[derive(Debug)]
pub(super) struct FrameReader {
    /// What was read and not yet used, from `used` on.
    input: Vec<u8>,
    used: usize,
    /// Of a header that is not whole yet.
    header: Vec<u8>,
    /// The frame whose body is being read.
    announced: Option<Announced>,
    body: Vec<u8>,
    /// The last frame said that another one belongs to it.
    is_in_parts: bool,
}

impl FrameReader {
    /// Of a connection that was not read from.
    pub(super) fn new() -> Self {
        Self {
            input: Vec::with_capacity(CHUNK_BYTES),
            used: 0,
            header: Vec::with_capacity(MAX_HEADER_BYTES),
            announced: None,
            body: Vec::new(),
            is_in_parts: false,
        }
    }

    /// The next message, or a question. Commands that nobody here knows are passed over, and so
    /// are messages of more than one frame: none of ours has more.
    ///
    /// # Errors
    /// [`ZmtpError`]; [`ZmtpError::TooLong`] for a frame of more than `max_bytes`.
    pub(super) async fn next<S>(
        &mut self,
        stream: &mut S,
        max_bytes: usize,
    ) -> Result<Received, ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            let (flags, body) = self.frame(stream, max_bytes).await?;
            if flags & COMMAND != 0 {
                if let Some(context) = ping_context(&body) {
                    return Ok(Received::Ping(context.to_vec()));
                }
                continue;
            }
            let has_more = flags & MORE != 0;
            let is_part = self.is_in_parts || has_more;
            self.is_in_parts = has_more;
            if !is_part {
                return Ok(Received::Message(body));
            }
        }
    }

    /// The next frame: its flags and its body.
    ///
    /// # Errors
    /// [`ZmtpError`].
    pub(super) async fn frame<S>(
        &mut self,
        stream: &mut S,
        max_bytes: usize,
    ) -> Result<(u8, Vec<u8>), ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        let announced = match self.announced {
            Some(announced) => announced,
            None => self.read_header(stream, max_bytes).await?,
        };
        self.announced = Some(announced);
        let Announced { flags, bytes } = announced;
        while self.body.len() < bytes {
            let missing = bytes - self.body.len();
            if self.body.len() == self.body.capacity() {
                let at_most = self.body.len().max(CHUNK_BYTES);
                self.body.reserve_exact(missing.min(at_most));
            }
            if self.used < self.input.len() {
                let here = &self.input[self.used..];
                let taken = &here[..here.len().min(missing)];
                self.body.extend_from_slice(taken);
                self.used += taken.len();
            } else if missing < CHUNK_BYTES {
                self.fill(stream).await?;
            } else {
                // Straight to where it belongs, and nothing of the next frame.
                let mut stream = (&mut *stream).take(missing as u64);
                if stream.read_buf(&mut self.body).await? == 0 {
                    return Err(ZmtpError::Cut);
                }
            }
        }
        self.announced = None;
        Ok((flags, std::mem::take(&mut self.body)))
    }

    /// The next `N` bytes, whatever they are. Unlike the others, it must not be dropped meanwhile.
    ///
    /// # Errors
    /// [`ZmtpError`].
    pub(super) async fn exact<S, const N: usize>(
        &mut self,
        stream: &mut S,
    ) -> Result<[u8; N], ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte(stream).await?;
        }
        Ok(bytes)
    }

    async fn read_header<S>(
        &mut self,
        stream: &mut S,
        max_bytes: usize,
    ) -> Result<Announced, ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        let header_bytes = |header: &[u8]| match header.first() {
            Some(flags) if flags & LONG != 0 => MAX_HEADER_BYTES,
            _ => 2,
        };
        while self.header.len() < header_bytes(&self.header) {
            match self.byte(stream).await {
                Ok(byte) => self.header.push(byte),
                Err(ZmtpError::Cut) if self.header.is_empty() => return Err(ZmtpError::Ended),
                Err(error) => return Err(error),
            }
        }
        let (flags, len) = (self.header[0], &self.header[1..]);
        let bytes = len
            .iter()
            .fold(0, |sum, &byte| (sum << 8) | u64::from(byte));
        let is_command = flags & COMMAND != 0;
        let is_known = flags & !(MORE | LONG | COMMAND) == 0;
        if !is_known || (is_command && flags & MORE != 0) {
            return Err(ZmtpError::Flags(flags));
        }
        let limit = if is_command {
            MAX_COMMAND_BYTES
        } else {
            max_bytes
        };
        self.header.clear();
        match usize::try_from(bytes).ok().filter(|bytes| *bytes <= limit) {
            Some(bytes) => Ok(Announced { flags, bytes }),
            None => Err(ZmtpError::TooLong { bytes, limit }),
        }
    }

    async fn byte<S>(&mut self, stream: &mut S) -> Result<u8, ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        if self.used == self.input.len() {
            self.fill(stream).await?;
        }
        self.used += 1;
        Ok(self.input[self.used - 1])
    }

    /// Reads what is there, once everything is used that was.
    async fn fill<S>(&mut self, stream: &mut S) -> Result<(), ZmtpError>
    where
        S: AsyncRead + Unpin,
    {
        self.input.clear();
        self.used = 0;
        match stream.read_buf(&mut self.input).await? {
            0 => Err(ZmtpError::Cut),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use fastrand::Rng;
    use tokio::io::ReadBuf;

    use super::*;
    use crate::socket::zmtp::Frame;

    const MAX_BYTES: usize = 100_000;

    /// A connection on which bytes arrive in pieces of random sizes.
    struct Pieces<'a> {
        bytes: &'a [u8],
        rng: Rng,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.rng.u8(..4) == 0 {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let most = *[1, 2, 9, 300, 1 << 20]
                .get(self.rng.usize(..5))
                .expect("one of 5");
            let len = self.bytes.len().min(buffer.remaining()).min(most);
            let (now, later) = self.bytes.split_at(len);
            buffer.put_slice(now);
            self.bytes = later;
            Poll::Ready(Ok(()))
        }
    }

    /// Everything that is read of `bytes`, and why it ends. Each read is dropped at its first wait
    /// and begun again.
    fn read(bytes: &[u8], rng: &mut Rng) -> (Vec<Received>, ZmtpError) {
        let mut stream = Pieces {
            bytes,
            rng: rng.fork(),
        };
        let mut reader = FrameReader::new();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut received = Vec::new();
        loop {
            let polled = std::pin::pin!(reader.next(&mut stream, MAX_BYTES)).poll(&mut context);
            match polled {
                Poll::Pending => {}
                Poll::Ready(Ok(message)) => received.push(message),
                Poll::Ready(Err(error)) => return (received, error),
            }
            let most = 2 * bytes.len() + CHUNK_BYTES;
            assert!(reader.body.capacity() <= most, "more than has arrived");
        }
    }

    /// A message of up to `MAX_BYTES`, mostly a short one.
    fn message(rng: &mut Rng) -> Vec<u8> {
        let most = [2, 300, 300, MAX_BYTES + 1][rng.usize(..4)];
        let len = rng.usize(..most);
        std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
    }

    fn with_flags(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = Frame::message(body.to_vec()).to_bytes();
        bytes[0] |= flags;
        bytes
    }

    #[test]
    fn messages_are_read_as_they_were_sent_however_they_are_split() {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let (mut bytes, mut sent) = (Vec::new(), Vec::new());
            for _ in 0..rng.usize(..12) {
                let body = message(&mut rng);
                match rng.u8(..8) {
                    0 => {
                        // Passed over, all three of it.
                        bytes.extend(with_flags(MORE, &body));
                        bytes.extend(with_flags(MORE, b""));
                        bytes.extend(Frame::message(body).to_bytes());
                    }
                    1 => bytes.extend(with_flags(COMMAND, b"\x09SUBSCRIBE")),
                    2 => {
                        bytes.extend(with_flags(COMMAND, b"\x04PING\x00\x00abc"));
                        sent.push(Received::Ping(b"abc".to_vec()));
                    }
                    _ => {
                        bytes.extend(Frame::message(body.clone()).to_bytes());
                        sent.push(Received::Message(body));
                    }
                }
            }
            let (received, end) = read(&bytes, &mut rng);
            assert!(received == sent, "seed {seed}");
            assert!(matches!(end, ZmtpError::Ended), "seed {seed}: {end}");
            if !bytes.is_empty() {
                let cut = rng.usize(..bytes.len());
                let (received, end) = read(&bytes[..cut], &mut rng);
                assert!(sent.starts_with(&received), "seed {seed} cut at {cut}");
                let ends = matches!(end, ZmtpError::Ended | ZmtpError::Cut);
                assert!(ends, "seed {seed} cut at {cut}: {end}");
            }
        }
    }

    #[test]
    fn whatever_is_sent_is_read_or_refused_and_takes_no_memory() {
        for seed in 0..2000 {
            let mut rng = Rng::with_seed(seed);
            let mut bytes = Vec::new();
            for _ in 0..rng.usize(1..6) {
                let body: Vec<u8> = message(&mut rng).into_iter().take(600).collect();
                bytes.extend(with_flags(rng.u8(..8), &body));
            }
            for _ in 0..rng.usize(..4) {
                let at = rng.usize(..bytes.len());
                match rng.u8(..3) {
                    0 => bytes[at] = rng.u8(..),
                    1 => bytes[at] ^= 1 << rng.u8(..8),
                    _ => drop(bytes.splice(at..at, [LONG, rng.u8(..)])),
                }
            }
            // `read` looks at the memory; that it returns is the rest of the promise.
            read(&bytes, &mut rng);
        }
    }

    #[test]
    fn what_may_not_be_sent_is_refused_before_it_is_read() {
        let long = |flags: u8, bytes: u64| [&[LONG | flags][..], &bytes.to_be_bytes()].concat();
        let rng = &mut Rng::with_seed(1);
        let max_bytes = MAX_BYTES as u64;
        let (_, end) = read(&long(0, max_bytes), rng);
        assert!(matches!(end, ZmtpError::Cut), "{end}");
        for bytes in [max_bytes + 1, 1 << 38, 1 << 63, u64::MAX] {
            for flags in [0, MORE] {
                let (_, end) = read(&long(flags, bytes), rng);
                let text = end.to_string();
                assert!(matches!(end, ZmtpError::TooLong { .. }), "{text}");
                assert!(text.contains(&bytes.to_string()), "{text}");
                assert!(text.contains(&MAX_BYTES.to_string()), "{text}");
            }
        }
        let (_, end) = read(&long(COMMAND, MAX_COMMAND_BYTES as u64 + 1), rng);
        assert!(matches!(end, ZmtpError::TooLong { .. }), "{end}");
        for flags in [8, 128, COMMAND | MORE] {
            let (_, end) = read(&with_flags(flags, b"flags of the future"), rng);
            assert!(matches!(end, ZmtpError::Flags(_)), "{end}");
        }
    }
}
