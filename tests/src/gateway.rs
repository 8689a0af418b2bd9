//! Data planes under test: the daemon that a user runs, started in a namespace with a configuration of the
//! test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent::client;
use agent::report::Report;

use crate::netns::{Held, Namespace};

/// A running data plane.
#[derive(Debug)]
pub struct Gateway {
    /// The process.
    pub process: Held,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
}

/// The daemon of the same build as this test.
///
/// # Panics
/// When it was not built.
pub fn daemon() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/test");
    let daemon = folder.join("tidegate-dataplane");
    assert!(
        daemon.exists(),
        "{} is not built: `cargo build -p tidegate-dataplane` (with --release for a release test)",
        daemon.display()
    );
    daemon
}

/// A folder for one test's files, emptied when it begins.
///
/// # Panics
/// When it cannot be made.
pub fn folder(test: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tidegate-test-{test}-{}", std::process::id()));
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("an old folder of this test can be removed");
    }
    std::fs::create_dir_all(&path).expect("a temporary folder can be made");
    path
}

impl Gateway {
    /// Starts a data plane in `space` (or here) and waits until it answers. `body` is its configuration
    /// without `[node]`, and without `[frames]` where a few in ordinary pages will do.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(space: Option<&Namespace>, folder: &Path, name: &str, body: &str) -> Gateway {
        let config = folder.join(format!("{name}.toml"));
        let socket = folder.join(format!("{name}.sock"));
        write_config(&config, &socket, name, body);
        let path = daemon();
        let words = [&*path.to_string_lossy(), "run", "--config", &*config.to_string_lossy()];
        let log = std::fs::File::create(folder.join(format!("{name}.log"))).expect("a log file");
        let process = match space {
            Some(space) => space.spawn(&words, Stdio::null(), Stdio::from(log)),
            None => Held(
                Command::new(words[0])
                    .args(&words[1..])
                    .stdout(Stdio::null())
                    .stderr(Stdio::from(log))
                    .spawn()
                    .expect("the daemon starts"),
            ),
        };
        let gateway = Gateway { process, socket, config };
        gateway.until(&format!("gateway {name} answers"), || gateway.try_stats().is_some());
        gateway
    }

    /// What a data plane with this configuration says, which does not start.
    ///
    /// # Panics
    /// When it ends well.
    pub fn refusal(folder: &Path, name: &str, body: &str) -> String {
        let config = folder.join(format!("{name}.toml"));
        write_config(&config, &folder.join(format!("{name}.sock")), name, body);
        let run = Command::new(daemon()).arg("run").arg("--config").arg(&config).output();
        let run = run.expect("the daemon starts");
        assert!(!run.status.success(), "it should not have started");
        String::from_utf8_lossy(&run.stderr).into_owned()
    }

    /// Changes the configuration file to `body`; [`Gateway::reload`] makes it count.
    pub fn rewrite(&self, name: &str, body: &str) {
        write_config(&self.config, &self.socket, name, body);
    }

    /// Has the file reloaded.
    pub fn reload(&self) -> Result<String, client::AskError> {
        client::reload(&self.socket)
    }

    /// Its report, if it answers.
    pub fn try_stats(&self) -> Option<Report> {
        client::stats(&self.socket, "", 1000).ok()
    }

    /// Its report.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn stats(&self) -> Report {
        client::stats(&self.socket, "", 1000).expect("the data plane answers")
    }

    /// Waits until all ports are up.
    pub fn ports_up(&self) {
        self.until("all ports are up", || self.stats().ports.iter().all(|port| port.state == "up"));
    }

    /// Waits until `ready` holds, which is what the data plane brings about.
    ///
    /// # Panics
    /// When it ends before, or it does not hold within [`crate::netns::PATIENCE`].
    pub fn until(&self, what: &str, ready: impl FnMut() -> bool) {
        self.process.until(what, ready);
    }

    /// Ends it as a service manager would.
    ///
    /// # Panics
    /// When it does not end well.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.process.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be told");
        let status = self.process.ended("the data plane");
        assert!(status.success(), "the data plane ended with {status:?}");
        assert!(!self.socket.exists(), "its socket is gone");
    }
}

fn write_config(path: &Path, socket: &Path, name: &str, body: &str) {
    let node =
        format!("[node]\nname = \"{name}\"\ncontrol_socket = \"{}\"\nmetrics = \"off\"\n", socket.display());
    let frames = "[frames]\ncount = 8192\njumbo_count = 256\nhugepages = false\n";
    let frames = if body.contains("[frames]") { "" } else { frames };
    std::fs::write(path, node + frames + body).expect("the configuration can be written");
}

/// True when claims are to be shown in full (`cargo xtask verify`), false in the short form of CI.
pub fn full() -> bool {
    std::env::var_os("TIDEGATE_FULL").is_some()
}

/// [`full`] for a test without a short form, which says that it is left out.
pub fn full_or_skip(test: &str) -> bool {
    if !full() {
        crate::netns::skip(test, "it has no short form; set TIDEGATE_FULL=1");
    }
    full()
}

/// The middle of some figures.
///
/// # Panics
/// Without any.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Sum of a frame counter over the workers of a report.
pub fn frames(report: &Report, key: &str) -> u64 {
    report.workers.iter().filter_map(|worker| worker.frames.get(key)).sum()
}

/// Sum of a drop reason over the workers of a report.
pub fn drops(report: &Report, reason: &str) -> u64 {
    report.workers.iter().filter_map(|worker| worker.drops.get(reason)).sum()
}
