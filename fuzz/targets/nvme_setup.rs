//! Any bytes into [`fuzz::nvme::nvme_setup`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::nvme::nvme_setup(bytes));
