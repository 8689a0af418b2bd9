//! Processes and network namespaces that disappear with this process.
//!
//! Namespaces have no name: each is held by a sleeping child that the kernel kills when we die, so that
//! neither Ctrl-C nor kill -9 leaves anything behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What went wrong, in a sentence.
pub type Outcome<T = ()> = Result<T, String>;

/// Runs a program and returns what it printed.
pub fn output(command: &mut Command) -> Outcome<String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{shown}: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

/// A child process that is killed when it is dropped, and by the kernel when we are killed.
pub struct Held(Child);

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

    /// Starts a daemon and waits until it says that it runs.
    pub fn daemon(space: Option<&Namespace>, words: &[&str]) -> Outcome<Held> {
        let mut held = Held::start(space, words, Stdio::piped())?;
        let stdout = held.0.stdout.take().ok_or("a daemon has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let Some(Ok(first)) = lines.next() else {
            return Err(format!("`{}` ended at once", words.join(" ")));
        };
        eprintln!("  {first}");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("  {line}")));
        Ok(held)
    }

    /// Asks the child to stop as a service manager would, and waits for it.
    pub fn stop(mut self) -> Outcome {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| format!("a daemon cannot be stopped: {error}"))?;
        let status = self.0.wait().map_err(|error| format!("wait: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("a daemon ended with {status}")) }
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

/// Writes a file of the demonstration.
pub fn write(path: &Path, text: &str) -> Outcome {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
