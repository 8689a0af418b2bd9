//! The file as a person gets it wrong, and right.
