//! A control plane, its data planes and their volumes, as a user runs them: real daemons, the command line that a
//! user types, kill -9 of either side.

mod api;
mod attach;
#[path = "../serve/client.rs"]
#[allow(dead_code, reason = "the tests of serving use all of it")]
mod client;
mod clones;
mod cluster;
mod conditions;
mod etcd;
mod failover;
mod host;
mod leases;
mod life;
mod moves;
mod networks;
#[path = "../serve/nvme.rs"]
#[allow(dead_code, reason = "the tests of serving use all of it")]
mod nvme;
mod policies;
mod profiles;
mod resize;
mod restart;
#[path = "../../../controlplane/store/tests/store/server.rs"]
#[allow(dead_code, reason = "the tests of the store use all of it")]
mod server;
mod storm;
mod swap;
mod top;
mod up;
mod verbs;
mod wire;
