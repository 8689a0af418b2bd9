//! Poll-mode port drivers behind one trait
