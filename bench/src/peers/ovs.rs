//! OVS with its DPDK datapath in folders of its own: the system's Open vSwitch is not touched.
//!
//! It spins from start to end, so it is stopped by a signal while the other side is measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::cpu::Thread;
use crate::space::output;
use crate::traffic::{VNI, vtep, vtep_mac};

use super::Sample;

const DAEMON: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Which way through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// p0 -> tunnel -> p1.
    Into,
    /// p1 -> tunnel -> p0.
    OutOf,
}

/// A running switch.
pub struct Ovs {
    database: Child,
    daemon: Child,
    folder: PathBuf,
    worker: Option<Thread>,
}

impl Ovs {
    /// Starts it with `trace` arriving at one side of a VXLAN tunnel, stopped until measured.
    pub fn start(folder: &Path, way: Way, trace: &Path) -> Outcome<Ovs> {
        let folder = folder.join("ovs");
        // Left behind by the row before.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
        output(Command::new("ovsdb-tool").args(["create", &at("conf.db"), SCHEMA]))?;
        let database = Command::new("/usr/sbin/ovsdb-server")
            .args([at("conf.db"), format!("--remote=punix:{}", at("db.sock"))])
            .args([format!("--unixctl={}", at("db.ctl")), format!("--log-file={}", at("db.log"))])
            .env("OVS_RUNDIR", &folder)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run ovsdb-server: {error}"))?;
        wait_until("ovsdb-server", || folder.join("db.sock").exists())?;
        let daemon = Command::new(DAEMON)
            .args([format!("unix:{}", at("db.sock")), format!("--unixctl={}", at("ctl"))])
            .arg(format!("--log-file={}", at("ovs.log")))
            .env("OVS_RUNDIR", &folder)
            .stderr(Stdio::null())
            .spawn();
        let daemon =
            daemon.map_err(|error| format!("cannot run {DAEMON} (openvswitch-switch-dpdk): {error}"));
        let mut ovs = match daemon {
            Ok(daemon) => Ovs { database, daemon, folder, worker: None },
            Err(error) => {
                end(database);
                return Err(error);
            }
        };
        ovs.configure(way, trace)?;
        wait_until("the thread that polls", || Thread::find(ovs.daemon.id(), "pmd-c").is_ok())?;
        ovs.worker = Some(Thread::find(ovs.daemon.id(), "pmd-c")?);
        ovs.signal(Signal::STOP)?;
        Ok(ovs)
    }

    fn configure(&self, way: Way, trace: &Path) -> Outcome {
        let cpu = crate::cell::worker_cpu();
        self.vsctl("init")?;
        let extra = format!("--no-pci --in-memory --file-prefix=tidegate-ovs-{}", std::process::id());
        self.vsctl(&format!("set Open_vSwitch . other_config:pmd-cpu-mask={:#x}", 1_u64 << cpu))?;
        self.vsctl("set Open_vSwitch . other_config:dpdk-lcore-mask=0x1 other_config:dpdk-socket-mem=600")?;
        let set = ["set", "Open_vSwitch", ".", &format!("other_config:dpdk-extra=\"{extra}\"")];
        output(self.tool("ovs-vsctl").args(set))?;
        self.vsctl("set Open_vSwitch . other_config:dpdk-init=true")?;
        let replay = format!("net_pcap0,rx_pcap={},infinite_rx=1", trace.display());
        let quiet = "net_null0,size=64,copy=0,no-rx=1";
        let (inner, outer, ours, theirs) = match way {
            Way::Into => (&*replay, quiet, 1, 2),
            Way::OutOf => (quiet, &*replay, 2, 1),
        };
        for (bridge, port, device) in [("br-int", "p0", inner), ("br-phy", "p1", outer)] {
            self.vsctl(&format!(
                "add-br {bridge} -- set bridge {bridge} datapath_type=netdev fail_mode=secure"
            ))?;
            self.vsctl(&format!(
                "add-port {bridge} {port} -- set Interface {port} type=dpdk options:dpdk-devargs={device}"
            ))?;
        }
        self.vsctl(&format!("set bridge br-phy other_config:hwaddr={}", vtep_mac(ours)))?;
        self.vsctl(&format!(
            "add-port br-int vx0 -- set Interface vx0 type=vxlan options:remote_ip={} options:local_ip={} options:key={VNI}",
            vtep(theirs),
            vtep(ours)
        ))?;
        let ip = |words: &str| output(Command::new("ip").args(words.split_whitespace()));
        ip(&format!("addr add {}/24 dev br-phy", vtep(ours)))?;
        ip("link set br-phy up")?;
        for (bridge, flow) in [
            ("br-int", "in_port=p0,actions=vx0"),
            ("br-int", "in_port=vx0,actions=p0"),
            ("br-phy", "in_port=p1,actions=LOCAL"),
            ("br-phy", "in_port=LOCAL,actions=p1"),
        ] {
            output(self.tool("ovs-ofctl").args(["add-flow", bridge, flow]))?;
        }
        self.appctl(&format!("tnl/arp/set br-phy {} {}", vtep(theirs), vtep_mac(theirs)))?;
        Ok(())
    }

    /// Lets it run for `interval`.
    pub fn measure(&self, interval: Duration) -> Outcome<Sample> {
        self.signal(Signal::CONT)?;
        let sample = self.measure_running(interval);
        self.signal(Signal::STOP)?;
        sample
    }

    fn measure_running(&self, interval: Duration) -> Outcome<Sample> {
        let worker = self.worker.as_ref().ok_or("ovs-vswitchd does not poll")?;
        std::thread::sleep(interval / 4);
        let (before, cpu_before, began) = (self.received()?, worker.cpu()?, Instant::now());
        std::thread::sleep(interval);
        let (now, cpu, elapsed) = (self.received()?, worker.cpu()?, began.elapsed());
        if now.dropped > before.dropped {
            return Err(format!("OVS drops what it should forward; see {}", self.folder.display()));
        }
        Ok(Sample { frames: now.frames - before.frames, cpu: cpu - cpu_before, elapsed })
    }

    /// What the thread that polls has received so far.
    fn received(&self) -> Outcome<Received> {
        let text = self.appctl("dpif-netdev/pmd-stats-show")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok())
        };
        let frames = field("packets received").ok_or_else(|| format!("OVS said: {text}"))?;
        Ok(Received { frames, dropped: field("miss with failed upcall").unwrap_or(0) })
    }

    /// How the flow cache is set, and how often it hit: printed beside the figures.
    pub fn cache_state(&self) -> Outcome<String> {
        self.signal(Signal::CONT)?;
        let text = self.appctl("dpif-netdev/pmd-stats-show");
        self.signal(Signal::STOP)?;
        let text = text?;
        let of_interest = ["emc hits:", "smc hits:", "megaflow hits:", "avg. subtable lookups"];
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| of_interest.iter().any(|w| line.starts_with(w)))
            .collect();
        Ok(lines[..lines.len().min(4)].join(", "))
    }

    fn vsctl(&self, words: &str) -> Outcome<String> {
        output(self.tool("ovs-vsctl").args(["--timeout=60"]).args(words.split_whitespace()))
    }

    fn appctl(&self, words: &str) -> Outcome<String> {
        let target = self.folder.join("ctl").to_string_lossy().into_owned();
        output(self.tool("ovs-appctl").args(["-t", &target]).args(words.split_whitespace()))
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("OVS_RUNDIR", &self.folder);
        if name == "ovs-vsctl" {
            command.arg(format!("--db=unix:{}", self.folder.join("db.sock").display()));
        }
        command
    }

    fn signal(&self, signal: Signal) -> Outcome {
        let pid = Pid::from_child(&self.daemon);
        kill_process(pid, signal).map_err(|error| format!("ovs-vswitchd has ended: {error}"))
    }
}

struct Received {
    frames: u64,
    dropped: u64,
}

impl Drop for Ovs {
    fn drop(&mut self) {
        // All fail only when they have ended already.
        let _ = self.signal(Signal::CONT);
        let _ = self.appctl("exit --cleanup");
        let until = Instant::now() + Duration::from_secs(5);
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = self.database.kill();
        let _ = self.database.wait();
    }
}

fn end(mut child: Child) {
    // Both fail only when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_until(what: &str, mut ready: impl FnMut() -> bool) -> Outcome {
    let until = Instant::now() + Duration::from_secs(60);
    while !ready() {
        if Instant::now() > until {
            return Err(format!("{what} did not come up within 60 s"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
