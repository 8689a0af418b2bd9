//! The agent of one data plane: everything of the daemon that is not on the path of a packet.
//!
//! - [`config`] reads the daemon's one file and turns it into what the engine runs.
//! - `control` does what a control plane says.
//! - [`daemon`] keeps a node and its file in step: start, reload, ports that come and go.
//! - [`exports`] opens and closes the volumes that are served here; `listen` lets clients in, `nbd` and `nvme` talk to
//!   them up to their volume, `tls` encrypts.
//! - [`traces`] collects the I/Os that are followed, [`waterfall`] draws one.
//! - `unix` makes the sockets that have a place in the file system.
//! - [`server`] answers on a Unix socket and on loopback; [`client`] is its other end.
//! - [`report`] is what a data plane says about itself, [`table`] shows it to a person, [`metrics`] to
//!   Prometheus.

#![forbid(unsafe_code)]

pub mod client;
pub mod config;
mod control;
pub mod daemon;
pub mod exports;
mod listen;
pub mod metrics;
mod nbd;
mod nvme;
pub mod report;
pub mod server;
pub mod table;
mod tls;
pub mod traces;
mod unix;
pub mod waterfall;
