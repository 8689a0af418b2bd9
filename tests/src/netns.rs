//! Network namespaces for tests: unnamed, so that they are gone with the process, and usable without root.
//!
//! A test that needs them wraps its body in [`isolated`]: with the right to make namespaces the body simply
//! runs; without it the test runs itself again under `unshare -rn`, as root of a user namespace of its own
//! (that is enough for veth pairs, AF_PACKET and traffic control, not for AF_XDP); where even that is
//! forbidden it says why it skips. Inside, [`Namespace::new`] makes as many namespaces as the test wants,
//! [`veth`] joins two of them, [`Namespace::command`] starts programs there and [`Namespace::run`] runs a
//! closure there, whose sockets stay in the namespace wherever they are moved afterwards.
//!
//! Invariants: no name under /run/netns, nothing in the namespace that the tests were started from; a
//! program started through [`Namespace::spawn`] dies with the test thread.

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// Set in the process that [`isolated`] starts, so that it does not start another.
const INNER: &str = "TIDEGATE_TEST_UNSHARED";
/// Names a file to which every skip appends a line, so that CI can fail on one that it does not expect.
const SKIPS: &str = "TIDEGATE_TEST_SKIPS";

/// Runs `body` where network namespaces can be made, or says why the test is skipped. `test` is the name
/// by which the test harness knows the test: its path inside the test binary.
///
/// # Panics
/// When the body does, here or in the process that ran it.
pub fn isolated(test: &str, body: impl FnOnce()) {
    let forbidden = match Namespace::try_new() {
        Ok(_) => return body(),
        Err(error) => error,
    };
    if std::env::var_os(INNER).is_some() {
        return skip(test, &format!("no network namespace even as root of a user namespace: {forbidden}"));
    }
    match Command::new("unshare").args(["-rn", "true"]).output() {
        Err(error) => return skip(test, &format!("not root, and no `unshare` (util-linux): {error}")),
        Ok(output) if !output.status.success() => {
            let why = String::from_utf8_lossy(&output.stderr);
            return skip(test, &format!("not root, and user namespaces are forbidden here: {}", why.trim()));
        }
        Ok(_) => {}
    }
    let this = std::env::current_exe().expect("a running test has a path");
    let status = Command::new("unshare")
        .args(["-rn", "--"])
        .arg(this)
        .args([test, "--exact", "--nocapture", "--include-ignored"])
        .env(INNER, "1")
        .status()
        .expect("`unshare` ran a moment ago");
    assert!(status.success(), "{test}, run under `unshare -rn`, ended with {status}");
}

/// Says that a test did not run, and why, on standard error and in the file that CI reads.
pub fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    // Not by a macro: the test runner would keep what a test that passes has printed.
    std::io::stderr().write_all(line.as_bytes()).expect("standard error can be written");
    if let Some(path) = std::env::var_os(SKIPS) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of skips can be written");
    }
}

/// Runs a client that others wrote to its end; `None` when it is not installed, which is said as a [`skip`].
///
/// # Panics
/// When it fails, with what it said.
pub fn client(test: &str, program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip(test, &format!("`{program}` is not installed"));
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {}\n{printed}\n{said}", output.status);
    Some(printed.into_owned())
}

/// A network namespace without a name, held open by a descriptor.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// A new namespace with its loopback up.
    ///
    /// # Panics
    /// Without the right to make one: wrap the test in [`isolated`].
    #[expect(clippy::new_without_default, reason = "it has effects and may panic")]
    pub fn new() -> Namespace {
        let space = Namespace::try_new().expect("wrap the test in netns::isolated");
        space.ip("link set lo up");
        space
    }

    fn try_new() -> std::io::Result<Namespace> {
        // A thread of its own: unsharing moves the calling thread, for good.
        let made = std::thread::spawn(|| {
            #[expect(
                deprecated,
                reason = "unsharing the network namespace alone cannot break memory safety"
            )]
            rustix::thread::unshare(UnshareFlags::NEWNET)?;
            open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        });
        let fd = made.join().expect("making a namespace does not panic")?;
        Ok(Namespace { fd })
    }

    /// A path by which other processes reach this namespace while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// Runs a closure in the namespace, on a thread that lives as long as the closure. Sockets made there
    /// belong to the namespace for ever. Children of that thread that ask to die with their parent die when
    /// the closure returns: start those with [`Namespace::spawn`].
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("whoever made the namespace may enter it");
                body()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs a program in the namespace to its end and returns what it printed.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn output(&self, words: &[&str]) -> String {
        let (program, args) = words.split_first().expect("a program");
        let output = self.command(program).args(args).output().expect("`nsenter` (util-linux) runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "`{}` in a namespace: {}", words.join(" "), said.trim());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `ip` (iproute2) with words parted by spaces: `space.ip("addr add 10.0.0.1/24 dev a0")`.
    ///
    /// # Panics
    /// When it fails, with what it said.
    pub fn ip(&self, words: &str) -> String {
        self.output(&["ip"].into_iter().chain(words.split_whitespace()).collect::<Vec<_>>())
    }

    /// Writes a sysctl of the namespace: `space.sysctl("net/ipv4/ip_forward", "1")`.
    ///
    /// # Panics
    /// When the kernel has no such one or refuses.
    pub fn sysctl(&self, name: &str, value: &str) {
        let written = self.run(|| std::fs::write(format!("/proc/sys/{name}"), value));
        written.unwrap_or_else(|error| panic!("sysctl {name}={value}: {error}"));
    }

    /// Starts a program in the namespace that is killed when the [`Held`] is dropped, and by the kernel when
    /// the calling thread ends in any other way.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, words: &[&str], stdout: Stdio, stderr: Stdio) -> Held {
        let mut command = self.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(words);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        Held(child.expect("`nsenter` (util-linux) runs"))
    }
}

/// Longest that anything expected may take to happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at what announces itself to nobody.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `ready` holds, which others bring about.
///
/// # Panics
/// When it does not hold within [`PATIENCE`].
pub fn until(what: &str, ready: impl FnMut() -> bool) {
    assert!(comes(ready), "{what}: not within {} s", PATIENCE.as_secs());
}

/// Waits until `ready` holds, at most [`PATIENCE`]. False when it does not by then.
pub fn comes(mut ready: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(LOOK);
    }
    true
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct Held(pub Child);

impl Held {
    /// Waits for its end, but no longer than `limit`. True when it has ended.
    ///
    /// # Panics
    /// When the kernel has no process descriptors (Linux 5.3).
    pub fn ends_within(&self, limit: Duration) -> bool {
        let process =
            pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).expect("it is not waited for yet");
        let mut ends = [PollFd::new(&process, PollFlags::IN)];
        let limit = Timespec::try_from(limit).expect("a limit of seconds");
        // A signal that interrupts is none of the end.
        poll(&mut ends, Some(&limit)).unwrap_or(0) > 0
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    pub fn ended(&mut self, what: &str) -> ExitStatus {
        assert!(self.ends_within(PATIENCE), "{what} does not end within {} s", PATIENCE.as_secs());
        self.0.wait().expect("it is our child")
    }

    /// Waits until `ready` holds, which is what this process brings about.
    ///
    /// # Panics
    /// When the process ends before, or it does not hold within [`PATIENCE`].
    pub fn until(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !ready() {
            assert!(Instant::now() < end, "{what}: not within {} s", PATIENCE.as_secs());
            assert!(!self.ends_within(LOOK), "{what}: never, for the process has ended");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both fail only when the child has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Joins two namespaces by a veth pair, both ends up, without IPv6 link-local addresses (so that nothing
/// but the test's own frames is on the wire).
///
/// # Panics
/// When `ip` fails, with what it said.
pub fn veth(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) {
    a.ip(&format!("link add {a_name} type veth peer name {b_name} netns {}", b.path()));
    for (space, name) in [(a, a_name), (b, b_name)] {
        space.ip(&format!("link set {name} addrgenmode none"));
        space.ip(&format!("link set {name} up"));
    }
}
