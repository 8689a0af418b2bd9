//! Any bytes into [`fuzz::nvme::nvme_session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::nvme::nvme_session(bytes));
