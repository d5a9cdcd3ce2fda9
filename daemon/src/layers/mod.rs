//! What model families share.
