//! Operation sequences.
