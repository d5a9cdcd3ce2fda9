//! Starting and stopping the engine's two threads.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::{Engine, EngineChannels, EngineConfig, EngineMessage};
use crate::device::DeviceError;
use crate::limits::{ENGINE_QUEUE_DEPTH, SUBMITTED_DEPTH};
use crate::reply;
use crate::watchdog::Pulse;

/// A running engine.
#[derive(Debug)]
pub struct EngineHandle {
    /// Where everything that concerns the engine goes.
    pub messages: SyncSender<EngineMessage>,
    /// Of its threads, by name: beats as long as the thread is not stuck.
    pub pulses: Vec<(&'static str, Pulse)>,
    threads: Vec<JoinHandle<()>>,
}

impl EngineHandle {
    /// Starts the engine thread, which alone uses MLX, and the reply thread.
    ///
    /// # Errors
    /// If the device cannot be used.
    pub fn start(config: EngineConfig) -> Result<Self, DeviceError> {
        config.device.select()?;
        let (messages, queue) = sync_channel(ENGINE_QUEUE_DEPTH);
        let (submitted, forwards) = sync_channel(SUBMITTED_DEPTH);
        let (pulse, reply_pulse) = (Pulse::default(), Pulse::default());
        let pulses = vec![("engine", pulse.clone()), ("reply", reply_pulse.clone())];
        let channels = EngineChannels {
            queue,
            messages: messages.clone(),
            submitted,
            pulse,
        };
        let completed = messages.clone();
        let threads = vec![
            spawn("engine", move || Engine::new(config, channels).run()),
            spawn("reply", move || {
                reply::run(&forwards, &completed, &reply_pulse)
            }),
        ];
        Ok(Self {
            messages,
            pulses,
            threads,
        })
    }

    /// The handle of an engine whose turns somebody else takes, on a thread of their own choice.
    #[must_use]
    pub fn without_threads(messages: SyncSender<EngineMessage>) -> Self {
        Self {
            messages,
            pulses: Vec::new(),
            threads: Vec::new(),
        }
    }

    /// Lets the steps in flight finish, then ends both threads.
    pub fn stop(self) {
        // A full queue drains; a closed one means that the engine has ended already.
        let _ = self.messages.send(EngineMessage::Stop);
        for thread in self.threads {
            thread
                .join()
                .expect("a thread that panics ends the process");
        }
    }
}

/// A thread without which the daemon cannot serve: if it panics, the daemon ends.
///
/// A daemon that answers heartbeats and runs nothing is worse than none: frontends wait for it,
/// while they recover from one that is gone.
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if thread::panicking() {
                std::process::abort();
            }
        }
    }
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(|| {
            let _guard = AbortOnPanic;
            body();
        })
        .expect("the system has a thread left")
}
