//! The step validator under libFuzzer: `scripts/soak validator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    metald_fuzz::check_validator(bytes);
});
