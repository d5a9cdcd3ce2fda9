//! The decoder under libFuzzer: `scripts/soak decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| metal_rpc_protocol_fuzz::check_decoder(bytes));
