//! The daemon's own limits; those of the wire are in `metal_rpc_protocol::limits`.

use metal_rpc_protocol::limits::{MAX_STEPS_IN_FLIGHT, MAX_TOKENS_PER_STEP};

/// Sessions open at the same time.
pub const MAX_SESSIONS: usize = 64;

/// Connections that have not greeted or, on TCP, not shown that they hold the token. More wait in
/// the system's queue.
pub const MAX_STRANGERS: usize = 16;

/// Connections that have: one a session, and some of `metald status`.
pub const MAX_GUESTS: usize = MAX_SESSIONS + 16;

/// Messages of one session waiting for the engine: the steps that it may have in flight, each with
/// its grammar, and as many that run nothing. A frontend that sends faster is refused.
pub const MAX_MESSAGES_QUEUED: usize = 4 * MAX_STEPS_IN_FLIGHT;

/// Messages that wait for the dispatcher, which never waits itself. Whoever sends more is not read
/// from meanwhile.
pub const RECEIVED_DEPTH: usize = 16;

/// Answers to `Status` that wait for the engine; more are dropped.
pub const MAX_REPORTS: usize = 64;

/// Messages waiting for the engine: what each session may queue, its opening and its closing, and
/// questions after its status.
pub const ENGINE_QUEUE_DEPTH: usize = MAX_SESSIONS * (MAX_MESSAGES_QUEUED + 2) + MAX_REPORTS;

/// Steps of one session that have not been submitted, those that run nothing included.
pub const MAX_STEPS_WAITING: usize = 4 * MAX_STEPS_IN_FLIGHT;

/// Steps of one session that have been applied and not answered, those that run nothing included.
pub const MAX_STEPS_UNANSWERED: usize = 4 * MAX_STEPS_IN_FLIGHT;

/// Work that the reply thread waits for: every step that may be unanswered on its own, and the
/// forwards that answer none because their steps end later. The engine never waits for room.
pub const SUBMITTED_DEPTH: usize = MAX_SESSIONS * MAX_STEPS_UNANSWERED + MAX_FORWARDS_IN_FLIGHT;

/// Replies waiting for one connection to read them: a result and an error per step, and the
/// progress of a load. A session that finds no room is closed.
pub const REPLY_QUEUE_DEPTH: usize = 256;

/// Forwards that the device has to do: one runs, one is built on its result.
pub const MAX_FORWARDS_IN_FLIGHT: usize = 2;

/// Forwards of one session each, after one of several has failed: until those whose it was have come
/// back and run again.
pub const FORWARDS_ALONE: u32 = 128;

/// Tokens of one forward.
pub const MAX_TOKENS_PER_FORWARD: u32 = 1 << 17;

/// The least that `--turn-tokens` may be: a token for each session.
pub const MIN_TURN_TOKENS: u32 = 64;

/// One part in so many of what is reserved for a session is not promised to it.
pub const RESERVE_MARGIN: u64 = 64;

/// How often a frontend should be heard, in milliseconds.
pub const HEARTBEAT_MS: u32 = 1_000;

/// After so much silence a session is closed, in milliseconds: several heartbeats of a frontend
/// on a machine under load.
pub const LEASE_MS: u32 = 8_000;

/// How long a daemon that was asked to leave waits for the steps in flight, in milliseconds.
/// Frontends recompute those that it does not wait for.
pub const DRAIN_MS: u64 = 10_000;

/// How long frontends have to read their last replies, in milliseconds.
pub const FAREWELL_MS: u64 = 2_000;

/// How long a daemon waits for the one before it, in milliseconds: the time that one takes at most,
/// and as much again for a machine under load.
pub const HANDOVER_MS: u64 = 2 * (DRAIN_MS + FAREWELL_MS);

/// How often an idle thread shows that it is not stuck, in milliseconds.
pub const IDLE_BEAT_MS: u64 = 500;

/// Least time that a step may be given before the daemon takes itself for stuck, in seconds.
pub const MIN_STEP_TIMEOUT_S: u64 = 2;

/// What launchd gives a service between SIGTERM and SIGKILL, in milliseconds.
const LAUNCHD_EXIT_MS: u64 = 20_000;

const _: () = assert!(DRAIN_MS + FAREWELL_MS < LAUNCHD_EXIT_MS);
const _: () = assert!(MIN_STEP_TIMEOUT_S * 1000 >= 4 * IDLE_BEAT_MS);
const _: () = assert!(MAX_TOKENS_PER_FORWARD as usize == MAX_TOKENS_PER_STEP);
const _: () = assert!(MIN_TURN_TOKENS as usize >= MAX_SESSIONS);
const _: () = assert!(ENGINE_QUEUE_DEPTH <= 1024);
const _: () = assert!(LEASE_MS >= 4 * HEARTBEAT_MS);
