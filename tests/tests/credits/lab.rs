//! The place of the tests: a tenant's host and a storage server, each in a namespace, with two gateways
//! between them; real NBD servers, one per volume, and fio as their client.
//!
//! ```text
//!  host 10.0.0.1 ──veth── gateway near ══ VXLAN ══ gateway far ──veth── nbdkit 10.0.0.2:10809…
//! ```
//!
//! The volumes are metered at the near gateway, in both directions.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent::report::Volume;
use tests::gateway::{Gateway, folder};
use tests::lab::{HOST, HOST_MAC, PEER, PEER_MAC, gateway};
use tests::netns::{Held, Namespace, skip, veth};

const SERVER: &str = PEER;
const FIRST_PORT: usize = 10_809;
const NS: u64 = 1_000_000_000;

/// Everything, gone when it is dropped.
pub struct Lab {
    pub near: Gateway,
    far: Gateway,
    _servers: Vec<Held>,
    host: Namespace,
    server: Namespace,
    _spaces: [Namespace; 2],
    place: PathBuf,
    loads: usize,
}

/// What the near gateway said about a volume at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Of the gateway's clock.
    pub at_ns: u64,
    pub admitted_bytes: u64,
    pub bank_bytes: Option<i64>,
    pub parked_bytes: u64,
    pub marked: u64,
    pub dropped: u64,
}

/// TCP segments that the server's kernel sent, and those of them that it had sent before.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    pub sent: u64,
    pub again: u64,
}

/// True if the programs are there; says so otherwise.
pub fn has_programs(test: &str) -> bool {
    let engines = Command::new("fio").arg("--enghelp").output();
    let has_nbd = engines.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("nbd"));
    let has_server = Command::new("nbdkit").arg("--version").output().is_ok();
    if !has_nbd || !has_server {
        skip(test, "fio with its engine nbd, and nbdkit, are needed: apt-get install fio nbdkit");
    }
    has_nbd && has_server
}

fn side(near: bool, limits: &str) -> String {
    let (host, server) = ((HOST, HOST_MAC), (SERVER, PEER_MAC));
    let gateway = match near {
        true => gateway("vxlan", ("192.0.2.1", "192.0.2.2", 24), host, server),
        false => gateway("vxlan", ("192.0.2.2", "192.0.2.1", 24), server, host),
    };
    gateway + limits
}

/// Volume `number` of the configuration: `limits` are lines of its table.
pub fn volume(number: usize, limits: &str) -> String {
    let port = FIRST_PORT + number;
    format!("[[volume]]\nname = \"v{number}\"\ntenant = \"blue\"\nserver = \"{SERVER}:{port}\"\n{limits}\n")
}

/// Where fio finds volume `number`.
pub fn uri(number: usize) -> String {
    format!("--uri=nbd://{SERVER}:{}/", FIRST_PORT + number)
}

impl Lab {
    /// Starts all of it: `volumes` NBD servers of 256 MiB, and `limits` at the near gateway.
    pub fn start(test: &str, volumes: usize, limits: &str) -> Lab {
        let place = folder(test);
        let [host, a, b, server] = std::array::from_fn(|_| Namespace::new());
        veth(&host, "eth0", &a, "tenant0");
        veth(&server, "eth0", &b, "tenant0");
        veth(&a, "under0", &b, "under0");
        for (space, number) in [(&host, 1), (&server, 2)] {
            space.ip(&format!("link set eth0 address 02:00:00:00:00:0{number}"));
            space.ip(&format!("addr add 10.0.0.{number}/24 dev eth0"));
        }
        for space in [&a, &b] {
            space.ip("link set under0 mtu 1600");
        }
        let near = Gateway::start(Some(&a), &place, "near", &side(true, limits));
        let far = Gateway::start(Some(&b), &place, "far", &side(false, ""));
        near.ports_up();
        far.ports_up();
        let serve = |number: usize| {
            let port = (FIRST_PORT + number).to_string();
            let words = ["nbdkit", "--foreground", "--ipaddr", SERVER, "--port", &*port, "memory", "256M"];
            let log = File::create(place.join(format!("nbdkit-{number}.log"))).expect("a log file");
            server.spawn(&words, Stdio::null(), Stdio::from(log))
        };
        let servers: Vec<Held> = (0..volumes).map(serve).collect();
        let lab = Lab { near, far, _servers: servers, host, server, _spaces: [a, b], place, loads: 0 };
        // Every kernel has it.
        assert!(lab.congestion_control("reno"));
        for number in 0..volumes {
            let address = (SERVER, (FIRST_PORT + number) as u16);
            lab.near.until("an NBD server answers through both gateways", || {
                lab.host.run(|| std::net::TcpStream::connect(address).is_ok())
            });
        }
        lab
    }

    /// Chooses the algorithm of both ends, by their route to each other, for a namespace may not make one its
    /// default that the machine reserves for root. False if this kernel does not have it.
    ///
    /// The tests do not leave it to the machine, so that they mean the same on every machine.
    pub fn congestion_control(&self, name: &str) -> bool {
        [(&self.host, HOST), (&self.server, SERVER)].into_iter().all(|(space, ours)| {
            let mut ip = space.command("ip");
            ip.args(["route", "replace", "10.0.0.0/24", "dev", "eth0", "src", ours, "congctl", name]);
            ip.output().expect("`nsenter` (util-linux) runs").status.success()
        })
    }

    /// Chooses whether both ends ask for ECN.
    pub fn ecn(&self, ask: bool) {
        for space in [&self.host, &self.server] {
            space.sysctl("net/ipv4/tcp_ecn", if ask { "1" } else { "2" });
        }
    }

    /// fio with the NBD engine on the host; its result is a JSON document.
    pub fn load(&mut self, words: &[&str]) -> Load {
        self.loads += 1;
        let file = self.place.join(format!("fio-{}.json", self.loads));
        let output = format!("--output={}", file.display());
        let mut all =
            vec!["fio", "--ioengine=nbd", "--rw=randread", "--size=256M", "--time_based", "--thread"];
        all.extend(["--output-format=json", &*output]);
        all.extend(words);
        // fio writes its notes to the file that it writes the document to; what it says elsewhere is seen.
        Load { fio: self.host.spawn(&all, Stdio::inherit(), Stdio::inherit()), file }
    }

    /// The volumes' figures now.
    pub fn volumes(&self) -> Vec<Volume> {
        let mut volumes = self.near.stats().volumes;
        volumes.sort_by_key(|volume| volume.name[1..].parse::<usize>().expect("volumes are v0, v1, …"));
        volumes
    }

    /// Volume `number` now.
    pub fn sample(&self, number: usize) -> Sample {
        Sample::of(&self.volumes()[number])
    }

    /// The first sample that is taken `after_ns` or later, by the gateway's clock.
    pub fn sample_at(&self, number: usize, after_ns: u64) -> Sample {
        loop {
            let sample = self.sample(number);
            match after_ns.checked_sub(sample.at_ns) {
                None | Some(0) => return sample,
                Some(left_ns) => {
                    let over = self.near.process.ends_within(Duration::from_nanos(left_ns));
                    assert!(!over, "the gateway ended");
                }
            }
        }
    }

    /// What the server's kernel has sent so far.
    pub fn segments(&self) -> Segments {
        let text = self.server.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
        let text = text.expect("every namespace has counters");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
        let value = |name: &str| {
            let mut both = names.split(' ').zip(values.split(' '));
            both.find(|(key, _)| *key == name)
                .and_then(|(_, value)| value.parse().ok())
                .expect("RFC 1213 has it")
        };
        Segments { sent: value("OutSegs"), again: value("RetransSegs") }
    }

    /// Something for each processor to do whenever it has nothing to do, until it is dropped: at the lowest
    /// priority that there is, so that it is not in the way. For a virtual processor that halts gets back
    /// to work when its host likes, which may be milliseconds later; latencies would be the host's.
    pub fn keep_processors_awake(&self) -> Vec<Held> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let words = ["chrt", "--idle", "0", "sh", "-c", "while :; do :; done"];
        (0..processors).map(|_| self.host.spawn(&words, Stdio::null(), Stdio::inherit())).collect()
    }

    /// Ends everything. Nothing may have gone wrong by then that nobody has seen.
    pub fn stop(self) {
        for gateway in [&self.near, &self.far] {
            let report = gateway.stats();
            assert!(report.workers.iter().all(|worker| worker.balanced), "records balance: {report:?}");
        }
        self.near.stop();
        self.far.stop();
        std::fs::remove_dir_all(self.place).expect("the folder can be removed");
    }
}

impl Sample {
    pub fn of(volume: &Volume) -> Sample {
        Sample {
            at_ns: volume.at_ns,
            admitted_bytes: volume.admitted_bytes,
            bank_bytes: volume.bytes.burst_level,
            parked_bytes: volume.parked_bytes,
            marked: volume.marked,
            dropped: volume.dropped,
        }
    }

    /// Seconds from `earlier` to this one, negative if it is not earlier.
    pub fn seconds_since(&self, earlier: &Sample) -> f64 {
        self.at_ns.cast_signed().wrapping_sub(earlier.at_ns.cast_signed()) as f64 / NS as f64
    }

    /// Bytes admitted from `earlier` to this one.
    pub fn bytes_since(&self, earlier: &Sample) -> f64 {
        (self.admitted_bytes - earlier.admitted_bytes) as f64
    }
}

impl Segments {
    /// Share of the segments since `earlier` that had been sent before.
    pub fn share_again_since(&self, earlier: &Segments) -> f64 {
        (self.again - earlier.again) as f64 / (self.sent - earlier.sent).max(1) as f64
    }
}

/// Time of all processors so far, and what their host took away of it, in ticks; see proc_stat(5).
pub fn processor_ticks() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").expect("every kernel has it");
    let first =
        text.lines().next().and_then(|line| line.strip_prefix("cpu ")).expect("all processors come first");
    let fields: Vec<u64> = first.split_whitespace().map(|field| field.parse().expect("a number")).collect();
    (fields.iter().take(8).sum(), fields[7])
}

/// A running fio.
pub struct Load {
    fio: Held,
    file: PathBuf,
}

/// What one of its jobs saw.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub bytes: u64,
    pub seconds: f64,
    pub p99_us: f64,
}

impl Load {
    /// True until it has ended.
    pub fn runs(&self) -> bool {
        !self.fio.ends_within(Duration::ZERO)
    }

    /// Waits for its end. What its jobs saw, in their order.
    pub fn finish(mut self) -> Vec<Job> {
        self.fio.ended("fio");
        let text = std::fs::read_to_string(&self.file).expect("fio writes its result");
        let begin = text.find('{').unwrap_or_else(|| panic!("fio: {text}"));
        let json: serde_json::Value = serde_json::from_str(&text[begin..]).expect("fio writes JSON");
        let jobs = json["jobs"].as_array().unwrap_or_else(|| panic!("fio: {json}"));
        jobs.iter().map(job).collect()
    }
}

fn job(job: &serde_json::Value) -> Job {
    assert_eq!(job["error"], 0, "fio: {job}");
    let read = &job["read"];
    let us = |quantile: &str| read["clat_ns"]["percentile"][quantile].as_f64().map(|ns| ns / 1e3);
    Job {
        bytes: read["io_bytes"].as_u64().expect("fio counts bytes"),
        seconds: read["runtime"].as_f64().expect("fio takes the time") / 1e3,
        p99_us: us("99.000000").expect("fio has percentiles"),
    }
}
