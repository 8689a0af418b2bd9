//! fio as the host of a volume: writes at a pace, and verifies what it wrote all the time.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bench::Outcome;

/// Requests per second: a load that leaves the processor room for decisions.
const IOPS: u32 = 1_000;

/// A run; ended when it is dropped.
pub(super) struct Fio(Option<Child>);

impl Fio {
    pub fn start(uri: &str, length: Duration) -> Outcome<Fio> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "fio", "--name=load", "--ioengine=nbd", "--thread"])
            .args(["--rw=randwrite", "--bs=4k", "--iodepth=8", "--size=64m", "--time_based"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64", "--verify_state_save=0"])
            .arg("--output-format=json")
            .arg(format!("--uri={uri}"))
            .arg(format!("--rate_iops={IOPS}"))
            .arg(format!("--runtime={}", length.as_secs()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        child.map(|child| Fio(Some(child))).map_err(|error| format!("fio cannot be run: {error}"))
    }

    /// Waits for its end. Its requests, and whether something was wrong; it must not have ended before.
    pub fn end(mut self) -> Outcome<(u64, bool)> {
        let Some(mut child) = self.0.take() else { return Err("fio has ended twice".to_owned()) };
        let early = child.try_wait().map_err(|error| format!("fio: {error}"))?;
        let output = child.wait_with_output().map_err(|error| format!("fio: {error}"))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        // Its notes come on the same stream, before the report.
        let report = printed.find("{\n").map_or("", |at| &printed[at..]);
        let report: serde_json::Value =
            serde_json::from_str(report).map_err(|error| format!("fio: {error}: {printed}{said}"))?;
        let job = &report["jobs"][0];
        let of = |side: &str| job[side]["total_ios"].as_u64().unwrap_or(0);
        let requests = of("read") + of("write");
        let failed = early.is_some() || !output.status.success() || job["error"] != 0 || requests == 0;
        if failed {
            eprintln!("fio: {}: {}{}", output.status, job["error"], said.trim());
        }
        Ok((requests, failed))
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
