//! Any bytes into [`fuzz::nbd::nbd_handshake`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::nbd::nbd_handshake(bytes));
