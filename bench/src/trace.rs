//! `bench trace`: what following I/Os costs the data plane.
//!
//! One daemon serves a volume without bytes; one `tidegate-load` after the other reads from it. Between two of them a reload
//! changes how many requests are followed: none, one in 64, each. So all sides are measured in one process, in turns. What
//! is compared is the time that the worker's thread spends on its processor per request, at a depth at which it is never
//! idle; that of the collector, which runs beside the workers, is told apart.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Outcome;
use crate::cpu::{Thread, settle};
use crate::peers::{Args, QUIET_PATIENCE};
use crate::rate::tempfolder;
use crate::report::{self, median, spread};

/// One side.
#[derive(Clone, Debug, Serialize)]
pub struct TraceRow {
    /// One in so many requests is followed; 0 = none.
    pub sample: u32,
    /// Requests under way.
    pub depth: u32,
    /// Requests per second, median.
    pub iops: f64,
    /// Time of the worker per request, ns, median.
    pub worker_ns: f64,
    /// Time of the collector per request, ns, median.
    pub collector_ns: f64,
    /// Time of the worker by that without following, median of the pairs.
    pub ratio: f64,
    /// (largest - smallest) / median of the ratios.
    pub spread: f64,
    /// Runs of each side.
    pub runs: usize,
}

/// What is compared: nothing followed first.
const SAMPLES: [u32; 3] = [0, 64, 1];
/// What is promised of each: more than that is too much.
const BOUNDS: [f64; 3] = [1.0, 1.01, 1.05];
const DEPTHS: [u32; 2] = [32, 128];
/// Longest time until the daemon answers.
const START: Duration = Duration::from_secs(30);
/// The processor of the worker; the load has the others.
const WORKER_CPU: usize = 1;

struct Daemon {
    child: Child,
    config: PathBuf,
    program: PathBuf,
    folder: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    iops: f64,
    worker_ns: f64,
    collector_ns: f64,
}

/// Measures, prints the table, and says whether what is promised holds.
pub fn run(args: &Args) -> Outcome {
    let folder = tempfolder("trace")?;
    let (runs, seconds) = if args.quick { (5, 1) } else { (15, 2) };
    core_affinity::set_for_current(core_affinity::CoreId { id: 0 });
    let daemon = Daemon::start(&folder.0)?;
    let mut rows = Vec::new();
    for depth in DEPTHS.into_iter().filter(|depth| args.wants(&format!("depth {depth}"))) {
        eprintln!("depth {depth}");
        let mut samples = SAMPLES.map(|_| Vec::new());
        for _ in 0..runs {
            if !args.no_wait {
                settle(QUIET_PATIENCE)?;
            }
            for (sample, samples) in SAMPLES.into_iter().zip(&mut samples) {
                daemon.follow(sample)?;
                samples.push(daemon.measure(depth, seconds)?);
            }
        }
        let worker = |samples: &[Sample]| samples.iter().map(|one| one.worker_ns).collect::<Vec<_>>();
        let none = worker(&samples[0]);
        for (sample, samples) in SAMPLES.into_iter().zip(&samples) {
            let of = |figure: fn(&Sample) -> f64| median(&samples.iter().map(figure).collect::<Vec<_>>());
            let ratios: Vec<f64> =
                worker(samples).iter().zip(&none).map(|(ours, none)| ours / none).collect();
            rows.push(TraceRow {
                sample,
                depth,
                iops: of(|one| one.iops),
                worker_ns: of(|one| one.worker_ns),
                collector_ns: of(|one| one.collector_ns),
                ratio: median(&ratios),
                spread: spread(&ratios),
                runs,
            });
        }
    }
    print(&rows);
    match &args.json {
        Some(path) => report::write_json(path, &rows),
        None => Ok(()),
    }
}

fn print(rows: &[TraceRow]) {
    let head = ["followed", "depth", "IOPS", "worker ns", "collector ns", "ratio", "at most", "spread"]
        .map(str::to_owned);
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let followed = match row.sample {
                0 => "none".to_owned(),
                1 => "each".to_owned(),
                sample => format!("1 in {sample}"),
            };
            let bound = SAMPLES.iter().zip(BOUNDS).find(|(sample, _)| **sample == row.sample);
            vec![
                followed,
                row.depth.to_string(),
                format!("{:.0}", row.iops),
                format!("{:.0}", row.worker_ns),
                format!("{:.0}", row.collector_ns),
                format!("{:.3}", row.ratio),
                bound.map_or_else(String::new, |(_, bound)| format!("{bound:.2}")),
                format!("{:.0} %", row.spread * 100.0),
            ]
        })
        .collect();
    println!("{}", report::markdown(&head.each_ref().map(String::as_str), &cells));
    println!("ratio: the worker's time per request by that without following, median of pairs");
}

impl Daemon {
    fn start(folder: &Path) -> Outcome<Daemon> {
        let me = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
        let program = me.with_file_name("tidegate-dataplane");
        let config = folder.join("bench.toml");
        write(folder, &config, 0)?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .args([program.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run setpriv (package util-linux): {error}"))?;
        let mut daemon = Daemon { child, config, program, folder: folder.to_owned() };
        let until = Instant::now() + START;
        while daemon.follow(0).is_err() {
            let ended = daemon.child.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() > until {
                return Err(format!("{} does not serve", daemon.program.display()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// Has it follow one in `sample` requests.
    fn follow(&self, sample: u32) -> Outcome {
        write(&self.folder, &self.config, sample)?;
        let reload = Command::new(&self.program)
            .arg("reload")
            .arg("--socket")
            .arg(self.folder.join("control.sock"))
            .output()
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        if reload.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&reload.stderr).into_owned())
        }
    }

    fn measure(&self, depth: u32, seconds: u32) -> Outcome<Sample> {
        let worker = Thread::find(self.child.id(), "tidegate-w0")?;
        let collector = Thread::find(self.child.id(), "tidegate-trace")?;
        let (worker_before, collector_before) = (worker.cpu()?, collector.cpu()?);
        let load = self.program.with_file_name("tidegate-load");
        let uri = format!("nbd+unix:///null?socket={}", self.folder.join("nbd.sock").display());
        let output = Command::new(&load)
            .args([uri.as_str(), "--depth", &depth.to_string(), "--seconds", &seconds.to_string()])
            .args(["--output", "json"])
            .output()
            .map_err(|error| format!("{}: {error}", load.display()))?;
        let told = String::from_utf8_lossy(&output.stdout);
        let last = told.lines().last().unwrap_or_default();
        let figures: serde_json::Value =
            serde_json::from_str(last).map_err(|error| format!("{}: {error}: {told}", load.display()))?;
        let iops =
            figures["iops"].as_f64().ok_or_else(|| format!("{} tells no iops: {told}", load.display()))?;
        let requests = (iops * f64::from(seconds)).max(1.0);
        let per_request = |now: Duration, before: Duration| (now - before).as_nanos() as f64 / requests;
        let worker_ns = per_request(worker.cpu()?, worker_before);
        Ok(Sample { iops, worker_ns, collector_ns: per_request(collector.cpu()?, collector_before) })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(folder: &Path, config: &Path, sample: u32) -> Outcome {
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "[node]\nname = \"bench\"\ncontrol_socket = \"{}\"\nmetrics = \"off\"\n[[worker]]\ncpu = {WORKER_CPU}\n\
         [serve]\nmemory = \"64MiB\"\n[trace]\nsample = {sample}\n[nbd]\nlisten = [\"{}\"]\n\
         [[export]]\nname = \"null\"\nmedium = \"null\"\nsize = \"1GiB\"\n",
        at("control.sock"),
        at("nbd.sock")
    );
    std::fs::write(config, text).map_err(|error| format!("{}: {error}", config.display()))
}
