//! DPDK's testpmd, started once per row and told to start and stop for each measurement.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::cpu::Thread;

use super::Sample;

/// A running testpmd that forwards only while it is measured.
pub struct Testpmd {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    worker: Thread,
}

const START: Duration = Duration::from_secs(60);

impl Testpmd {
    /// Starts it with these virtual devices, forwarding as `mode` says.
    pub fn start(devices: &[String], topology: &str, mode: &str) -> Outcome<Testpmd> {
        let cpu = crate::cell::worker_cpu();
        let prefix = format!("tidegate-{}", std::process::id());
        // Line by line: into a pipe it would speak only when its buffer is full.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", "dpdk-testpmd"])
            .args(["-l", &format!("0,{cpu}"), "-n", "2", "--no-pci", "--in-memory", "-m", "384"])
            .args(["--log-level=3", "--file-prefix", &prefix]);
        command.args(devices.iter().map(|device| format!("--vdev={device}")));
        command.args(["--", "--nb-cores=1", "--burst=32", "--txd=1024", "--rxd=1024"]);
        command.args(["--total-num-mbufs=65536", "--no-lsc-interrupt", "-i"]);
        command.args([format!("--port-topology={topology}"), format!("--forward-mode={mode}")]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run dpdk-testpmd (package dpdk): {error}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("dpdk-testpmd has no pipes".to_owned());
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            // Ends when testpmd does, or when nobody listens any more.
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| send.send(line))
        });
        let worker = Thread::find(child.id(), "");
        let mut testpmd = Testpmd { child, stdin, lines, worker: worker? };
        testpmd.tell("show config fwd")?;
        testpmd.wait_for("packet forwarding", START)?;
        testpmd.worker = ["lcore-worker", "rte-worker"]
            .iter()
            .find_map(|name| Thread::find(testpmd.child.id(), name).ok())
            .ok_or("dpdk-testpmd has no worker thread")?;
        Ok(testpmd)
    }

    /// Forwards for `interval`.
    pub fn measure(&mut self, interval: Duration) -> Outcome<Sample> {
        while self.lines.try_recv().is_ok() {}
        let cpu = self.worker.cpu()?;
        let began = Instant::now();
        self.tell("start")?;
        std::thread::sleep(interval);
        self.tell("stop")?;
        self.wait_for("Accumulated forward statistics", START)?;
        let line = self.wait_for("RX-packets:", START)?;
        let elapsed = began.elapsed();
        self.wait_for("Done.", START)?;
        let frames = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let frames = frames.ok_or_else(|| format!("dpdk-testpmd said `{line}`"))?;
        Ok(Sample { frames, cpu: self.worker.cpu()?.saturating_sub(cpu), elapsed })
    }

    fn tell(&mut self, words: &str) -> Outcome {
        writeln!(self.stdin, "{words}").map_err(|error| format!("dpdk-testpmd does not listen: {error}"))
    }

    fn wait_for(&self, words: &str, limit: Duration) -> Outcome<String> {
        let until = Instant::now() + limit;
        let mut said = String::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => return Ok(line),
                Ok(line) => said = line,
                Err(_) => {
                    return Err(format!("dpdk-testpmd did not say `{words}`, its last line is `{said}`"));
                }
            }
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        if self.tell("quit").is_ok() {
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
