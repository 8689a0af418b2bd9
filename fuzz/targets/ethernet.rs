//! Any bytes into [`fuzz::ethernet`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::ethernet(bytes));
