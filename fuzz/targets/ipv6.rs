//! Any bytes into [`fuzz::ipv6`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::ipv6(bytes));
