//! fio as the client: what most people measure NBD servers with.

use std::process::Command;

use super::servers;
use crate::Outcome;
use crate::load::Spec;

/// Whether it is there; says so if it is not.
pub(super) fn is_installed() -> bool {
    servers::is_installed("fio", "its rows are left out")
}

/// Runs what `spec` says; returns requests, requests per second, and median and 99th percentile of their latency in
/// microseconds.
pub(super) fn run(spec: &Spec) -> Outcome<(u64, f64, f64, f64)> {
    let is_read = spec.read_percent > 0;
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--time_based", "--output-format=json", "--size=256M"])
        .arg(format!("--uri={}", spec.uri))
        .arg(format!("--rw={}", if is_read { "randread" } else { "randwrite" }))
        .arg(format!("--bs={}", spec.block_bytes))
        .arg(format!("--iodepth={}", spec.depth))
        .arg(format!("--runtime={}", spec.duration.as_secs().max(1)))
        .output()
        .map_err(|error| format!("fio: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let wrong = |what: &str| format!("fio: {what}: {}", said.trim());
    if !output.status.success() {
        return Err(wrong(&output.status.to_string()));
    }
    // Its notes come on the same stream, before the report.
    let printed = String::from_utf8_lossy(&output.stdout);
    let report = printed.find("{\n").map_or("", |at| &printed[at..]);
    let report: serde_json::Value =
        serde_json::from_str(report).map_err(|error| wrong(&format!("{error} in: {printed}")))?;
    let side = &report["jobs"][0][if is_read { "read" } else { "write" }];
    let percentile = |name: &str| side["clat_ns"]["percentile"][name].as_f64().map(|ns| ns / 1e3);
    match (
        side["total_ios"].as_u64(),
        side["iops"].as_f64(),
        percentile("50.000000"),
        percentile("99.000000"),
    ) {
        (Some(ios), Some(iops), Some(p50_us), Some(p99_us)) if ios > 0 => Ok((ios, iops, p50_us, p99_us)),
        _ => Err(wrong("its report has no figures")),
    }
}
