//! Packet formats: zero-copy views and emitters, checksums
