//! Configuration, snapshots, statistics and metrics of one data plane
