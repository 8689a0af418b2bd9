//! Any bytes into [`fuzz::udp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::udp(bytes));
