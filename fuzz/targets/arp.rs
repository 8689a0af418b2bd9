//! Any bytes into [`fuzz::arp`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::arp(bytes));
