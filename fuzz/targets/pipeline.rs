//! Any bytes into [`fuzz::pipeline::pipeline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::pipeline::pipeline(bytes));
