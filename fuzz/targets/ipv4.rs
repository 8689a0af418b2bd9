//! Any bytes into [`fuzz::ipv4`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::ipv4(bytes));
