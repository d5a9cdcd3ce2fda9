//! ZMTP 3.0, as much of it as a gate needs: greeting, `READY`, and messages of one frame.
//!
//! # Source
//! <https://rfc.zeromq.org/spec/23/>

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const GREETING_BYTES: usize = 64;
/// Bytes of the largest `READY`: a socket type, an identity of 255 bytes, and some room.
const MAX_READY_BYTES: usize = 512;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Greets the other side as a socket of `socket_type`, without security of ZeroMQ's own.
///
/// # Errors
/// If the other side is no ZeroMQ socket, or another version or mechanism.
pub(super) async fn greet<S>(stream: &mut S, socket_type: &str) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&greeting()).await?;
    let mut theirs = [0; GREETING_BYTES];
    stream.read_exact(&mut theirs).await?;
    let ours = greeting();
    let is_zmtp = theirs[0] == ours[0] && theirs[9] == ours[9] && theirs[10] >= 3;
    if !is_zmtp || theirs[12..32] != ours[12..32] {
        return Err(invalid(
            "its greeting is not that of ZMTP 3 with NULL security",
        ));
    }
    stream.write_all(&ready(socket_type)).await?;
    let (flags, ready) = read_frame(stream, MAX_READY_BYTES).await?;
    if flags & COMMAND == 0 || !ready.starts_with(b"\x05READY") {
        return Err(invalid("it did not say READY"));
    }
    Ok(())
}

/// Reads a message. Its memory is taken as it arrives.
///
/// # Errors
/// If it is longer than `max_bytes`, of more than one frame, or no message.
pub(super) async fn read_message<R>(reader: &mut R, max_bytes: usize) -> Result<Vec<u8>>
where
    R: AsyncRead + Unpin,
{
    match read_frame(reader, max_bytes).await? {
        (0 | LONG, body) => Ok(body),
        _ => Err(invalid(
            "it sent something else than a message of one frame",
        )),
    }
}

/// Writes a message.
///
/// # Errors
/// If the connection is lost.
pub(super) async fn write_message<W>(writer: &mut W, message: &[u8]) -> Result<()>
where
    W: AsyncWrite + Unpin,
{
    writer.write_all(&frame(0, message)).await
}

async fn read_frame<R>(reader: &mut R, max_bytes: usize) -> Result<(u8, Vec<u8>)>
where
    R: AsyncRead + Unpin,
{
    let flags = reader.read_u8().await?;
    if flags & !(MORE | LONG | COMMAND) != 0 {
        return Err(invalid("it sent a frame with unknown flags"));
    }
    let len = match flags & LONG {
        0 => u64::from(reader.read_u8().await?),
        _ => reader.read_u64().await?,
    };
    if len > max_bytes as u64 {
        return Err(invalid("it announced a longer frame than it may send"));
    }
    let mut body = Vec::new();
    reader.take(len).read_to_end(&mut body).await?;
    if body.len() as u64 != len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((flags, body))
}

fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    let header = match u8::try_from(body.len()) {
        Ok(len) => vec![flags, len],
        Err(_) => [&[flags | LONG][..], &(body.len() as u64).to_be_bytes()].concat(),
    };
    [&header, body].concat()
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

fn ready(socket_type: &str) -> Vec<u8> {
    let len = u32::try_from(socket_type.len()).expect("a short name");
    let property = [
        &b"\x0bSocket-Type"[..],
        &len.to_be_bytes(),
        socket_type.as_bytes(),
    ]
    .concat();
    frame(COMMAND, &[&b"\x05READY"[..], &property].concat())
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn message(bytes: &[u8], max_bytes: usize) -> Result<Vec<u8>> {
        read_message(&mut &bytes[..], max_bytes).await
    }

    #[tokio::test]
    async fn messages_are_read_as_they_were_written() {
        for len in [0, 1, 255, 256, 70_000] {
            let sent = vec![7; len];
            let mut bytes = Vec::new();
            write_message(&mut bytes, &sent).await.expect("memory");
            assert_eq!(message(&bytes, len).await.expect("it is whole"), sent);
            let cut = message(&bytes[..bytes.len() - 1], len).await;
            assert_eq!(cut.expect_err("it is cut").kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[tokio::test]
    async fn what_a_stranger_may_not_send_is_refused_before_it_is_read() {
        let huge = [&[LONG][..], &u64::MAX.to_be_bytes()].concat();
        let refused = [
            huge,
            frame(0, &[0; 101]),
            frame(MORE, b"first of two"),
            frame(COMMAND, b"\x04PING"),
            frame(8, b"flags of the future"),
        ];
        for bytes in refused {
            let error = message(&bytes, 100).await.expect_err("it may not be sent");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn two_sockets_greet_each_other_and_nothing_else() {
        let (mut router, mut dealer) = tokio::io::duplex(1024);
        let (ours, theirs) =
            tokio::join!(greet(&mut router, "ROUTER"), greet(&mut dealer, "DEALER"));
        ours.expect("the other side is a socket");
        theirs.expect("the other side is a socket");

        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        let mut old = greeting();
        old[10] = 2;
        for wrong in [curve, old, [b'G'; GREETING_BYTES]] {
            let (mut ours, mut other) = tokio::io::duplex(1024);
            other.write_all(&wrong).await.expect("there is room");
            let error = greet(&mut ours, "ROUTER")
                .await
                .expect_err("it is no socket of ours");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
        }
    }
}
