//! Any bytes into [`fuzz::nbd::nbd_transmission`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::nbd::nbd_transmission(bytes));
