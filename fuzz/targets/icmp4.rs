//! Any bytes into [`fuzz::icmp4`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::icmp4(bytes));
