//! What the daemon remembers of one frontend.
//!
//! # Layout
//! - [`begun_step`]: a step that runs a chunk at a time
//! - [`registry`]: who is connected, and since when it is silent (dispatcher's side)
//! - [`state`]: model, blocks and requests of a session (engine's side)
//! - [`block_tables`]: which blocks of the pool a step's requests have
//! - [`request_state`]: one request, as rebuilt from the scheduler's diffs
//! - [`ticket`]: how much of the engine's queue a session may take
//! - [`token_table`]: the token ids of all running requests, on the device
//! - [`validate`]: a step from the wire, applied and checked; [`step_error`]: why it is refused
//! - [`sampling_params`]: what of the sampling parameters has to be checked

pub mod begun_step;
pub mod block_tables;
pub mod registry;
pub mod request_state;
pub mod sampling_params;
pub mod state;
pub mod step_error;
pub mod ticket;
pub mod token_table;
pub mod validate;

pub use begun_step::{BegunStep, RowPart};
pub use registry::{Registry, SessionId};
pub use request_state::CachedRequestState;
pub use state::{Session, SessionCache};
pub use step_error::StepError;
pub use ticket::{Ticket, Tickets};
pub use token_table::TokenTable;
pub use validate::{ValidRow, ValidStep};
