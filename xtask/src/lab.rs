//! A laboratory of network namespaces and daemons that disappears with this process.
//!
//! Namespaces have no name: each is held by a sleeping child that the kernel kills when we die, so that
//! neither Ctrl-C nor kill -9 leaves anything behind.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::tools::{Outcome, output, quiet, root};

/// A child process that is killed when it is dropped, and by the kernel when we are killed.
pub struct Held(pub Child);

impl Held {
    /// Starts `program` so that it dies with us. In `space`, if one is given.
    pub fn start(space: Option<&Namespace>, words: &[&str], stdout: Stdio) -> Outcome<Held> {
        let mut command = match space {
            Some(space) => space.command("setpriv"),
            None => Command::new("setpriv"),
        };
        command.args(["--pdeathsig", "KILL", "--"]).args(words).stdin(Stdio::null()).stdout(stdout);
        command.spawn().map(Held).map_err(|error| format!("cannot start `{}`: {error}", words.join(" ")))
    }

    /// Asks the child to stop as a service manager would, and waits for it.
    pub fn stop(mut self) -> Outcome {
        quiet(Command::new("kill").args(["-TERM", &self.0.id().to_string()]))?;
        let status = self.0.wait().map_err(|error| format!("wait: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}")) }
    }

    /// True when the child has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both fail only when the child has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace without a name.
pub struct Namespace {
    holder: Held,
}

impl Namespace {
    /// Makes a namespace with its loopback up. Needs root.
    pub fn new() -> Outcome<Namespace> {
        let holder = Held::start(None, &["unshare", "--net", "sleep", "infinity"], Stdio::null())?;
        let space = Namespace { holder };
        let ours = std::fs::read_link("/proc/self/ns/net").map_err(|error| error.to_string())?;
        wait_for("a new network namespace", Duration::from_secs(5), || {
            std::fs::read_link(format!("/proc/{}/ns/net", space.pid())).is_ok_and(|theirs| theirs != ours)
        })?;
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// The process that holds the namespace.
    pub fn pid(&self) -> u32 {
        self.holder.0.id()
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n", program]);
        command
    }

    /// `ip …` inside.
    pub fn ip(&self, words: &str) -> Outcome {
        output(self.command("ip").args(words.split_whitespace())).map(drop)
    }

    /// A veth pair from here to `other`, both ends up with the given MTU.
    pub fn veth(&self, name: &str, other: &Namespace, other_name: &str, mtu_bytes: u32) -> Outcome {
        self.ip(&format!(
            "link add {name} mtu {mtu_bytes} type veth peer name {other_name} mtu {mtu_bytes} netns {}",
            other.pid()
        ))?;
        self.ip(&format!("link set {name} up"))?;
        other.ip(&format!("link set {other_name} up"))
    }
}

/// Waits until `ready` holds, looking every 20 ms; an error names what did not come.
pub fn wait_for(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Outcome {
    let until = Instant::now() + limit;
    while !ready() {
        if Instant::now() > until {
            return Err(format!("{what} did not come up within {} s", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The daemon of this checkout, built with optimisation.
pub fn daemon() -> Outcome<PathBuf> {
    crate::tools::show(crate::tools::cargo().args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "tidegate-dataplane",
    ]))?;
    Ok(target().join("release/tidegate-dataplane"))
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Starts a data plane and waits until its control socket answers.
pub fn start_daemon(space: Option<&Namespace>, daemon: &Path, config: &Path, socket: &Path) -> Outcome<Held> {
    let words = [&*daemon.to_string_lossy(), "run", "--config", &*config.to_string_lossy()];
    let mut held = Held::start(space, &words, Stdio::piped())?;
    if let Some(stdout) = held.0.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                eprintln!("  {line}");
            }
        });
    }
    let mut ended = false;
    wait_for("the data plane", Duration::from_secs(10), || {
        ended = held.ended();
        ended || socket.exists()
    })?;
    if ended { Err(format!("the data plane with {} ended at once", config.display())) } else { Ok(held) }
}
