//! Any bytes into [`fuzz::vxlan`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::vxlan(bytes));
