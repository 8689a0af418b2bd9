//! End-to-end tests: namespaces, real clients, tidy.
//!
//! The tests stand in `tests/`; here is what they share.

#![forbid(unsafe_code)]

pub mod disk;
pub mod gateway;
pub mod guest;
pub mod lab;
pub mod netns;
pub mod random;
pub mod traffic;
