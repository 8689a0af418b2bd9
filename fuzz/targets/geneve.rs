//! Any bytes into [`fuzz::geneve`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::geneve(bytes));
