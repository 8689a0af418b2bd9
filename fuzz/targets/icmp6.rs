//! Any bytes into [`fuzz::icmp6`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::icmp6(bytes));
