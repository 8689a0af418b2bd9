//! Volumes served by the daemon that a user runs, to clients over NBD and NVMe/TCP: programs that we did not write, a
//! writer that survives kill -9, an owner that is replaced while it is stopped, volumes that come, grow and go, limits
//! as hosts and their neighbours feel them, where the time of I/Os went, a bit that turned, and clients that mean no good.
//!
//! Tests that need root, or a program that is not installed, are skipped aloud.

mod change;
mod client;
mod clients;
mod credits;
mod damage;
mod fence;
mod full;
mod hostile;
mod kill;
mod limits;
mod moves;
mod namespaces;
mod neighbour;
mod nvme;
mod place;
mod spans;
mod stall;
mod tls;
mod trace;

use nvme::host;
