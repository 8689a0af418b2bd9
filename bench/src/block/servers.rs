//! Servers to measure: ours as a user runs it, nbdkit and qemu-nbd, each pinned to the second processor, and an
//! NVMe/TCP target that somebody else has started.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::load::Uri;

/// Size of what is served.
pub const SIZE_BYTES: u64 = 256 << 20;
/// How long a server may take to begin.
const START: Duration = Duration::from_secs(60);
/// The processor of the server; the client has the first.
pub const SERVER_CPU: usize = 1;

/// NQN of our volumes, before their number.
const NQN: &str = "nqn.2026-11.com.example:v";
/// Connections that our server takes.
const CONNECTIONS: u32 = 8192;

/// What lies behind a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// Forgets what is written.
    Null,
    /// Memory of the server.
    Memory,
    /// A file, or files.
    File,
}

impl Medium {
    /// Each of them.
    pub const ALL: [Medium; 3] = [Medium::Null, Medium::Memory, Medium::File];

    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Medium::Null => "null",
            Medium::Memory => "memory",
            Medium::File => "file",
        }
    }
}

/// How it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// NVMe/TCP.
    NvmeTcp,
    /// NBD over TCP.
    Nbd,
}

impl Protocol {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::NvmeTcp => "nvme-tcp",
            Protocol::Nbd => "nbd",
        }
    }
}

/// Whose server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `tidegate-dataplane`.
    Ours,
    /// nbdkit.
    Nbdkit,
    /// qemu-nbd.
    Qemu,
    /// Another NVMe/TCP target, which runs already.
    Other(String),
}

impl Kind {
    /// As it is shown.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Ours => "tidegate",
            Kind::Nbdkit => "nbdkit",
            Kind::Qemu => "qemu-nbd",
            Kind::Other(_) => "other target",
        }
    }

    /// The target at an address with an NQN.
    pub fn other(place: &[String]) -> Option<Kind> {
        match place {
            [address, nqn] => Some(Kind::Other(format!("nvme+tcp://{address}/{nqn}"))),
            _ => None,
        }
    }
}

/// Whether a program is there; if not, says aloud what that means.
pub fn is_installed(program: &str, without: &str) -> bool {
    let mut version = Command::new(program);
    let status = version.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = status.is_ok_and(|status| status.success());
    if !found {
        eprintln!("{program} is not installed: {without}");
    }
    found
}

/// The NBD servers that are installed.
pub fn peers() -> Vec<Kind> {
    let there = |kind: &Kind| is_installed(kind.name(), "no comparison with it");
    [Kind::Nbdkit, Kind::Qemu].into_iter().filter(there).collect()
}

/// Time that a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// By the program.
    pub user_ns: u64,
    /// By the kernel for it.
    pub kernel_ns: u64,
}

/// A running server, killed when it is dropped unless somebody else has started it.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    /// With `@` for the number of the volume.
    uri: String,
}

impl Server {
    /// Starts it; it serves when this returns.
    pub fn start(
        kind: &Kind,
        protocol: Protocol,
        medium: Medium,
        volumes: u32,
        folder: &Path,
    ) -> Outcome<Server> {
        let port = free_port()?;
        let words = match kind {
            Kind::Ours => ours(protocol, medium, volumes, port, folder)?,
            Kind::Nbdkit => nbdkit(medium, port, folder)?,
            Kind::Qemu => qemu(medium, port, folder)?,
            Kind::Other(uri) => return Ok(Server { child: None, uri: uri.clone() }),
        };
        let log = folder.join(format!("{}.log", kind.name()));
        let output = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| format!("{}: {error}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "taskset", "-c", &SERVER_CPU.to_string()])
            .args(words)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("cannot run setpriv (package util-linux): {error}"))?;
        let uri = match (kind, protocol) {
            (Kind::Ours, Protocol::NvmeTcp) => format!("nvme+tcp://127.0.0.1:{port}/{NQN}@"),
            (Kind::Ours, Protocol::Nbd) => format!("nbd://127.0.0.1:{port}/v@"),
            _ => format!("nbd://127.0.0.1:{port}/"),
        };
        let mut server = Server { child: Some(child), uri };
        let until = Instant::now() + START;
        while !serves(kind, port, &log) {
            if server.has_ended() || Instant::now() > until {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("{} does not serve: {}", kind.name(), said.trim()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Where volume `number` is.
    pub fn uri(&self, number: u32) -> Outcome<Uri> {
        self.uri.replace('@', &number.to_string()).parse()
    }

    /// What all its threads have used, as of the kernel's last timer ticks; nothing is known of others' targets.
    pub fn spent(&self) -> Outcome<Spent> {
        let Some(child) = &self.child else { return Ok(Spent::default()) };
        let path = format!("/proc/{}/stat", child.id());
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        // proc_pid_stat(5): fields 14 and 15, counted from behind the name, in ticks of 10 ms.
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        match (ticks(11), ticks(12)) {
            (Some(user), Some(kernel)) => {
                Ok(Spent { user_ns: user * 10_000_000, kernel_ns: kernel * 10_000_000 })
            }
            _ => Err(format!("{path} cannot be read")),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether it answers. Ours listens before it has opened its volumes, and says when it has.
fn serves(kind: &Kind, port: u16, log: &Path) -> bool {
    let has_said = |log| std::fs::read_to_string(log).is_ok_and(|said| said.contains("is running: "));
    match kind {
        Kind::Ours => has_said(log),
        _ => std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
    }
}

/// A port that nobody uses now.
fn free_port() -> Outcome<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// The daemon that was built beside this bench.
fn ours(protocol: Protocol, medium: Medium, volumes: u32, port: u16, folder: &Path) -> Outcome<Vec<String>> {
    let me = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let daemon = me.with_file_name("tidegate-dataplane");
    if !daemon.exists() {
        return Err(format!("{} is not there; `cargo xtask bench block` builds it", daemon.display()));
    }
    let socket = folder.join("control.sock");
    let listen = match protocol {
        Protocol::NvmeTcp => "nvme",
        Protocol::Nbd => "nbd",
    };
    let mut text = format!(
        "[node]\nname = \"bench\"\ncontrol_socket = \"{}\"\nmetrics = \"off\"\n[[worker]]\n[{listen}]\n\
         listen = [\"127.0.0.1:{port}\"]\n[serve]\nmemory = \"256MiB\"\nconnections = {CONNECTIONS}\n",
        socket.display()
    );
    for volume in 0..volumes {
        let medium = medium.name();
        text.push_str(&format!(
            "[[export]]\nname = \"v{volume}\"\nnqn = \"{NQN}{volume}\"\nmedium = \"{medium}\"\n"
        ));
        if medium == Medium::File.name() {
            let directory = folder.join(format!("v{volume}"));
            // Left by the run before.
            if directory.exists() {
                std::fs::remove_dir_all(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
            }
            text.push_str(&format!("directory = \"{}\"\ncreate = true\n", directory.display()));
        }
        text.push_str(&format!("size = \"{}MiB\"\n", SIZE_BYTES >> 20));
    }
    let config = folder.join("bench.toml");
    std::fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
    let words = [daemon.as_os_str(), "run".as_ref(), "--config".as_ref(), config.as_os_str()];
    Ok(words.iter().map(|word| word.to_string_lossy().into_owned()).collect())
}

fn nbdkit(medium: Medium, port: u16, folder: &Path) -> Outcome<Vec<String>> {
    let mut words: Vec<String> = ["nbdkit", "-f", "-i", "127.0.0.1", "-p"].map(str::to_owned).to_vec();
    words.push(port.to_string());
    match medium {
        Medium::Null => words.extend(["null".to_owned(), SIZE_BYTES.to_string()]),
        Medium::Memory => words.extend(["memory".to_owned(), SIZE_BYTES.to_string()]),
        Medium::File => words.extend(["file".to_owned(), image(folder)?]),
    }
    Ok(words)
}

fn qemu(medium: Medium, port: u16, folder: &Path) -> Outcome<Vec<String>> {
    let mut words: Vec<String> =
        ["qemu-nbd", "-t", "-e", "64", "-b", "127.0.0.1", "-p"].map(str::to_owned).to_vec();
    words.push(port.to_string());
    match medium {
        Medium::Null => words
            .extend(["--image-opts".to_owned(), format!("driver=null-co,size={SIZE_BYTES},read-zeroes=on")]),
        Medium::Memory => {
            let path = "/dev/shm/tidegate-bench.raw";
            sparse(Path::new(path))?;
            words.extend(["-f", "raw", "--cache=writeback", path].map(str::to_owned));
        }
        Medium::File => {
            words.extend(["-f", "raw", "--cache=none", "--aio=native"].map(str::to_owned));
            words.push(image(folder)?);
        }
    }
    Ok(words)
}

/// A file of the size that is served.
fn image(folder: &Path) -> Outcome<String> {
    let path = folder.join("image.raw");
    sparse(&path)?;
    Ok(path.to_string_lossy().into_owned())
}

fn sparse(path: &Path) -> Outcome {
    let made = File::create(path).and_then(|file| file.set_len(SIZE_BYTES));
    made.map_err(|error| format!("{}: {error}", path.display()))
}
