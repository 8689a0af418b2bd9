//! A stock Linux kernel attaches to volumes of the daemon that a user runs: partitions, file systems, verified
//! load, discards, and the daemon killed in between.
//!
//! Kernel and QEMU come from `cargo xtask guest --fetch`; without them, and without network namespaces, the
//! tests are skipped aloud. `cargo xtask guest` runs the long form.

#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of serving use all of it")]
mod client;
#[path = "../control/cluster.rs"]
#[allow(dead_code, reason = "the tests of the control plane use all of it")]
mod cluster;
mod disk;
mod failover;
mod nbd;
mod nvme;
mod place;
#[path = "../control/wire.rs"]
#[allow(dead_code, reason = "the tests of the control plane use all of it")]
mod wire;
