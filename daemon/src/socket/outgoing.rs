//! The way out of one connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, ErrorKind, IoSlice};
use std::sync::{Mutex, MutexGuard};

use metal_rpc_protocol::auth::Seal;
use tokio::net::{tcp, unix};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::SEND_TIMEOUT;
use super::error::{Ended, Undelivered};
use super::zmtp::Frame;
use crate::limits::REPLY_QUEUE_DEPTH;

/// The writing half of a stream.
#[derive(Debug)]
pub(super) enum Sink {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
}

impl Sink {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Unix(half) => half.try_write_vectored(slices),
            Self::Tcp(half) => half.try_write_vectored(slices),
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Unix(half) => half.writable().await,
            Self::Tcp(half) => half.writable().await,
        }
    }
}

/// Sends messages: at once while the peer reads, and else in their order as soon as it does.
///
/// Any thread sends, and none ever waits for the peer. A frame of which a part has left stays the
/// first one until the rest has, or the connection ends.
#[derive(Debug)]
pub(super) struct Outgoing {
    sink: Sink,
    queue: Mutex<Queue>,
    /// Something waits that was not waiting.
    wakes: Notify,
}

#[derive(Debug)]
struct Queue {
    /// How messages are sealed, if they are.
    seal: Option<Seal>,
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that have left.
    sent: usize,
    is_open: bool,
}

impl Outgoing {
    pub(super) fn new(sink: Sink, seal: Option<Seal>) -> Self {
        let queue = Queue {
            seal,
            frames: VecDeque::new(),
            sent: 0,
            is_open: true,
        };
        Self {
            sink,
            queue: Mutex::new(queue),
            wakes: Notify::new(),
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`Undelivered`]; then nothing of it has left.
    pub(super) fn send(&self, message: Vec<u8>) -> Result<(), Undelivered> {
        let mut queue = self.lock();
        queue.check_room()?;
        let message = match &mut queue.seal {
            Some(seal) => seal.close(&message),
            None => message,
        };
        self.push(&mut queue, Frame::message(message));
        Ok(())
    }

    /// Answers a `PING`, unless so much waits already that the peer gets to hear enough.
    pub(super) fn send_pong(&self, context: &[u8]) {
        let mut queue = self.lock();
        if queue.check_room().is_ok() {
            self.push(&mut queue, Frame::pong(context));
        }
    }

    /// Whether nothing waits, or never will be read.
    pub(super) fn is_flushed(&self) -> bool {
        self.lock().frames.is_empty()
    }

    /// Sends what waits for the peer to read, until the connection is lost.
    ///
    /// # Errors
    /// [`Ended::Stuck`] if the peer takes nothing for [`SEND_TIMEOUT`], [`Ended::Zmtp`] if it is
    /// gone.
    pub(super) async fn run(&self) -> Result<Infallible, Ended> {
        loop {
            self.wakes.notified().await;
            while !self.flush(&mut self.lock()) {
                let writable = timeout(SEND_TIMEOUT, self.sink.writable()).await;
                let writable = writable.map_err(|_| Ended::Stuck)?;
                writable.map_err(|error| Ended::Zmtp(error.into()))?;
            }
        }
    }

    /// Nothing leaves any more.
    pub(super) fn close(&self) {
        self.lock().close();
    }

    fn push(&self, queue: &mut Queue, frame: Frame) {
        queue.frames.push_back(frame);
        // Whoever waits behind others waits for the task that they have woken.
        if queue.frames.len() == 1 && !self.flush(queue) {
            self.wakes.notify_one();
        }
    }

    /// Sends what the system takes now. False if it does not take everything.
    fn flush(&self, queue: &mut Queue) -> bool {
        while let Some(frame) = queue.frames.front() {
            match self.sink.try_write(&frame.rest(queue.sent)) {
                Ok(bytes) => queue.advance(bytes),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // Its end is seen by whoever reads from it.
                Err(_) => queue.close(),
            }
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics while holding it")
    }
}

impl Queue {
    fn check_room(&self) -> Result<(), Undelivered> {
        if !self.is_open {
            return Err(Undelivered::Gone);
        }
        if self.frames.len() >= REPLY_QUEUE_DEPTH {
            return Err(Undelivered::Full);
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
        if self
            .frames
            .front()
            .is_some_and(|frame| frame.len() == self.sent)
        {
            self.frames.pop_front();
            self.sent = 0;
        }
    }

    fn close(&mut self) {
        self.is_open = false;
        self.frames.clear();
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::socket::reader::{FrameReader, Received};

    /// As after a greeting: it is known that the socket can be written to.
    async fn pair() -> (Outgoing, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("the system has sockets");
        ours.writable().await.expect("it is open");
        let (_, half) = ours.into_split();
        (Outgoing::new(Sink::Unix(half), None), theirs)
    }

    fn message(number: usize) -> Vec<u8> {
        // From a few bytes to more than a socket's buffer takes.
        let len = [8, 300, 1 << 20][number % 3];
        let pattern = number.to_be_bytes();
        pattern.into_iter().cycle().take(len).collect()
    }

    #[tokio::test]
    async fn whoever_reads_late_gets_everything_in_order() {
        const COUNT: usize = 60;
        let (outgoing, mut theirs) = pair().await;
        for number in 0..COUNT {
            outgoing.send(message(number)).expect("there is room");
        }
        assert!(!outgoing.is_flushed());
        let mut reader = FrameReader::new();
        let read_all = async {
            for number in 0..COUNT {
                let next = reader.next(&mut theirs, 1 << 20).await;
                let Received::Message(received) = next.expect("it was sent") else {
                    panic!("nobody asks");
                };
                assert!(received == message(number), "{number}");
            }
        };
        tokio::select! {
            ended = outgoing.run() => panic!("{ended:?}"),
            () = read_all => {}
        }
        assert!(outgoing.is_flushed());
    }

    #[tokio::test]
    async fn whoever_does_not_read_is_left_after_a_while() {
        let (outgoing, theirs) = pair().await;
        let full = (0..).map(|number| outgoing.send(message(number)));
        let refused = full.take(2 * REPLY_QUEUE_DEPTH).find_map(Result::err);
        assert_eq!(refused, Some(Undelivered::Full));
        tokio::time::pause();
        let ended = outgoing.run().await.expect_err("nobody reads");
        assert!(matches!(ended, Ended::Stuck), "{ended}");
        outgoing.close();
        assert!(outgoing.is_flushed());
        assert_eq!(outgoing.send(message(0)), Err(Undelivered::Gone));
        drop(theirs);
    }

    #[tokio::test]
    async fn whoever_is_gone_gets_nothing() {
        let (outgoing, theirs) = pair().await;
        drop(theirs);
        // The first one finds out.
        let _ = outgoing.send(message(0));
        assert!(outgoing.is_flushed());
        assert_eq!(outgoing.send(message(1)), Err(Undelivered::Gone));
    }
}
