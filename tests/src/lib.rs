//! End-to-end tests: namespaces, real clients, tidy
