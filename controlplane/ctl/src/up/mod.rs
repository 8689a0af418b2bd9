//! `tidegate up`: all of it on this machine.
//!
//! A control plane on its embedded store, two data planes with pinned workers that it drives, the demonstration's
//! tenant with its volumes, and two gateways between them ([`gateways`]). The volumes lie in one directory that
//! both data planes see, so either takes over what the other served. Ctrl-C ends everything; what was not asked
//! to stay (`--volume-dir`) is gone then.

mod gateways;
mod lab;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gateways::Gateways;
use lab::{Held, Namespace, Outcome, output, wait_for, write};

use crate::client::{self, Address};

/// Options of `tidegate up`.
#[derive(clap::Args)]
pub struct Args {
    /// Tunnel between the gateways
    #[arg(long, value_parser = ["vxlan", "geneve"], default_value = "vxlan")]
    pub encapsulation: String,
    /// Driver of the gateways' ports (as root)
    #[arg(long, value_parser = ["af_packet", "af_xdp"], default_value = "af_packet")]
    pub driver: String,
    /// Run the printed fio line at once, for this many seconds, and end
    #[arg(long, value_name = "SECONDS")]
    load: Option<u32>,
    /// End after this many seconds instead of at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// As if without root: UDP sockets on loopback and the built-in generator
    #[arg(long)]
    rootless: bool,
    /// Keep volumes and the control plane's store in this directory, instead of in a temporary one that goes away
    #[arg(long, value_name = "DIR")]
    volume_dir: Option<PathBuf>,
}

/// Processors of this machine.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The programs beside this one.
struct Programs {
    tidegate: PathBuf,
    dataplane: PathBuf,
    controlplane: PathBuf,
}

impl Programs {
    fn find() -> Outcome<Programs> {
        let tidegate = std::env::current_exe().map_err(|error| format!("where am I? {error}"))?;
        let beside = |name: &str| {
            let path = tidegate.with_file_name(name);
            let hint = "build it: `cargo build --release -p tidegate-dataplane -p server -p ctl`";
            if path.is_file() { Ok(path) } else { Err(format!("{} is not there; {hint}", path.display())) }
        };
        let (dataplane, controlplane) = (beside("tidegate-dataplane")?, beside("tidegate-controlplane")?);
        Ok(Programs { tidegate, dataplane, controlplane })
    }
}

/// Runs until Ctrl-C. The control plane listens at `server`, or where every command of this user looks for it.
pub fn run(args: &Args, server: Option<Address>) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| error.to_string())?;
    }
    let programs = Programs::find()?;
    let rooted = rustix::process::geteuid().is_root() && !args.rootless;
    let socket = match server.unwrap_or_else(client::default_address) {
        Address::Unix(path) => path,
        Address::Http(_) | Address::Https(_) => {
            return Err("it listens on a Unix socket: `tidegate --server unix:/PATH up`".to_owned());
        }
    };
    if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Err(format!(
            "a control plane is running already at {}; end that `tidegate up` (or service) first",
            socket.display()
        ));
    }
    let folder = Folder::new()?;
    let kept = match &args.volume_dir {
        Some(given) => std::path::absolute(given).map_err(|error| format!("{}: {error}", given.display()))?,
        None => folder.0.clone(),
    };
    let gateways = if rooted {
        Gateways::in_namespaces(args, &folder.0, &programs.dataplane)?
    } else {
        eprintln!("without root: two gateways over UDP on loopback, the built-in generator as tenant");
        Gateways::over_loopback(args, &folder.0, &programs.dataplane)?
    };
    let stack =
        Stack::start(&programs, &folder.0, &kept, &socket, gateways.ends.as_ref().map(|(_, server)| server))?;
    stack.provide()?;
    stack.print(&gateways)?;
    match (args.load, &gateways.ends) {
        (Some(seconds), Some((host, _))) => load(host, seconds, &programs, &gateways.socket)?,
        _ => watch(args, &programs, &gateways.socket, &stop)?,
    }
    println!("\nstopping");
    stack.stop()?;
    gateways.stop()
}

/// A folder for configurations and sockets that goes away with us.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Folder> {
        let path = std::env::temp_dir().join(format!("tidegate-up-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// A data plane that the control plane drives.
struct Node {
    nbd_port: u16,
    nvme_port: u16,
    nbd_socket: PathBuf,
    daemon: Held,
}

/// The control plane and its data planes.
struct Stack {
    programs: PathBuf,
    socket: PathBuf,
    address: &'static str,
    controlplane: Held,
    nodes: Vec<Node>,
}

impl Stack {
    fn start(
        programs: &Programs,
        folder: &Path,
        kept: &Path,
        socket: &Path,
        space: Option<&Namespace>,
    ) -> Outcome<Stack> {
        let config = folder.join("controlplane.toml");
        let directory = kept.join("controlplane");
        let text = format!(
            "# The control plane of the demonstration.\ndirectory = {:?}\n\n[listen]\nat = [{:?}]\n",
            directory.display().to_string(),
            socket.display().to_string()
        );
        write(&config, &text)?;
        let words =
            [&*programs.controlplane.to_string_lossy(), "run", "--config", &*config.to_string_lossy()];
        let controlplane = Held::daemon(None, &words)?;
        let address = if space.is_some() { "10.0.0.2" } else { "127.0.0.1" };
        let mut nodes = Vec::new();
        for (number, name) in ["one", "two"].into_iter().enumerate() {
            let port = |usual: u16| match space {
                Some(_) => Ok(usual + number as u16),
                None => loopback_port(usual + number as u16),
            };
            let (nbd_port, nvme_port) = (port(10_809)?, port(4_420)?);
            let nbd_socket = folder.join(format!("nbd-{name}.sock"));
            let text = node_config(&NodeConfig {
                name,
                number,
                folder,
                kept,
                socket,
                address,
                nbd_port,
                nvme_port,
                nbd_socket: &nbd_socket,
            });
            let config = folder.join(format!("{name}.toml"));
            write(&config, &text)?;
            let words =
                [&*programs.dataplane.to_string_lossy(), "run", "--config", &*config.to_string_lossy()];
            let daemon = Held::daemon(space, &words)?;
            nodes.push(Node { nbd_port, nvme_port, nbd_socket, daemon });
        }
        let (programs, socket) = (programs.tidegate.clone(), socket.to_owned());
        Ok(Stack { programs, socket, address, controlplane, nodes })
    }

    fn tidegate(&self, words: &[&str]) -> Outcome<String> {
        let server = format!("unix:{}", self.socket.display());
        output(Command::new(&self.programs).args(["--server", &server]).args(words))
    }

    /// Makes the tenant and its volumes, unless they are there.
    fn provide(&self) -> Outcome {
        wait_for("both data planes", Duration::from_secs(20), || {
            let nodes = self.tidegate(&["node", "list"]).unwrap_or_default();
            nodes.matches(" alive ").count() == self.nodes.len()
        })?;
        self.tidegate(&["tenant", "put", "blue", "--vni", "100"])?;
        for (name, size, on) in [("disk", "10GiB", "one"), ("scratch", "1GiB", "two")] {
            if self.tidegate(&["volume", "get", name]).is_err() {
                let words = [
                    "volume", "create", name, "--size", size, "--tenant", "blue", "--on", on, "--iops",
                    "3000", "--wait",
                ];
                self.tidegate(&words)?;
            }
        }
        wait_for("the shipped policies", Duration::from_secs(120), || {
            self.tidegate(&["policy", "list"]).is_ok_and(|list| list.contains("leasing-pack-tight"))
        })
    }

    fn print(&self, gateways: &Gateways) -> Outcome {
        let inside = gateways.ends.as_ref().map_or(String::new(), |(host, server)| {
            println!("\nThe host reaches its volume \"disk\" through gateway a, the tunnel, gateway b.");
            println!("Attach from the host's namespace, in another terminal:\n");
            println!("  nsenter -t {} -n {FIO}", host.pid());
            println!("\nNBD at gateway a: 40 MB/s while its 64 MB of credits last, then 10 MB/s.");
            format!("nsenter -t {} -n ", server.pid())
        });
        println!("\nThe control plane placed these volumes. From this machine, in another terminal");
        println!("(nvme and nbd-client need root and the kernel's modules nvme-tcp and nbd):\n");
        for volume in ["disk", "scratch"] {
            println!("  # volume {volume}");
            for line in self.tidegate(&["volume", "attach", volume])?.lines() {
                let outside = line.starts_with('#') || line.contains("unix");
                println!("  {}{line}", if outside { "" } else { &inside });
            }
        }
        if let Some(node) = self.nodes.first() {
            let (address, port, socket) = (self.address, node.nvme_port, node.nbd_socket.display());
            println!("  # what a node offers, and an image onto a volume");
            println!("  {inside}nvme discover -t tcp -a {address} -s {port}");
            println!("  {inside}nbdinfo --list nbd://{address}:{}", node.nbd_port);
            println!("  qemu-img convert -n -f raw -O raw image.raw 'nbd+unix:///disk?socket={socket}'");
        }
        let tidegate = self.command();
        println!("\nAsk the control plane:\n");
        println!("  {tidegate} node list");
        println!("  {tidegate} volume list");
        println!("  {tidegate} volume create more --size 1GiB --tenant blue --wait");
        println!("  {tidegate} explain volume/1");
        println!("\nSwap what decides where leases come from, while fio runs:\n");
        println!("  {tidegate} policy list");
        println!("  {tidegate} policy shadow leasing-pack-tight");
        println!("  {tidegate} policy activate leasing-pack-tight");
        println!("  {tidegate} policy rollback leasing\n");
        Ok(())
    }

    /// How a person calls `tidegate` for this control plane.
    fn command(&self) -> String {
        let program = self.programs.display();
        match client::default_address() {
            Address::Unix(usual) if usual == self.socket => program.to_string(),
            _ => format!("{program} --server unix:{}", self.socket.display()),
        }
    }

    fn stop(self) -> Outcome {
        self.nodes.into_iter().try_for_each(|node| node.daemon.stop())?;
        self.controlplane.stop()
    }
}

// Writes: what a thin volume has never written it reads as holes, which cross the gateways as a few bytes.
const FIO: &str = "fio --name=disk --ioengine=nbd --uri=nbd://10.0.0.2:10809/disk --rw=randwrite --bs=64k \
                   --iodepth=32 --size=256M --time_based --runtime=30";

/// The usual port of loopback, or any other that is free.
fn loopback_port(usual: u16) -> Outcome<u16> {
    let bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port));
    let socket = bind(usual).or_else(|_taken| bind(0));
    let address = socket.and_then(|socket| socket.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

struct NodeConfig<'a> {
    name: &'a str,
    number: usize,
    folder: &'a Path,
    kept: &'a Path,
    socket: &'a Path,
    address: &'a str,
    nbd_port: u16,
    nvme_port: u16,
    nbd_socket: &'a Path,
}

fn node_config(node: &NodeConfig<'_>) -> String {
    let NodeConfig { name, number, address, nbd_port, nvme_port, .. } = node;
    format!(
        r#"# Data plane {name} of the demonstration: what it serves, the control plane says.
[node]
name = "{name}"
control_socket = "{control}"
metrics = "off"

[[worker]]
cpu = {cpu}

[nbd]
listen = ["{address}:{nbd_port}", "{nbd}"]
public = true

[nvme]
listen = ["{address}:{nvme_port}"]
public = true
controller_first = {controller}
controllers = 1000

[controlplane]
address = "unix:{socket}"
state = "{state}"
operations = 100000
bytes = "1GB/s"

[[controlplane.pool]]
name = "default"
directory = "{volumes}"
shared = true
capacity = "1TiB"
"#,
        control = node.folder.join(format!("{name}.sock")).display(),
        cpu = number % cpus(),
        nbd = node.nbd_socket.display(),
        controller = 1 + number * 1000,
        socket = node.socket.display(),
        state = node.kept.join(name).display(),
        volumes = node.kept.join("volumes").display(),
    )
}

/// Runs the printed fio line in the host's namespace.
fn load(host: &Namespace, seconds: u32, programs: &Programs, socket: &Path) -> Outcome {
    let fio = FIO.replace("--runtime=30", &format!("--runtime={seconds}"));
    let words: Vec<&str> = fio.split_whitespace().skip(1).collect();
    let status = host.command("fio").args(words).status().map_err(|error| format!("fio: {error}"))?;
    if !status.success() {
        return Err(format!("fio ended with {status}"));
    }
    let stats = Command::new(&programs.dataplane).args(["stats", "--socket"]).arg(socket).status();
    stats.map(drop).map_err(|error| format!("stats: {error}"))
}

/// Shows live figures until Ctrl-C or until the time is over.
fn watch(args: &Args, programs: &Programs, socket: &Path, stop: &AtomicBool) -> Outcome {
    println!("Live figures of gateway a; Ctrl-C ends everything.");
    let words =
        [&*programs.dataplane.to_string_lossy(), "stats", "--watch", "--socket", &*socket.to_string_lossy()];
    let mut stats = Held::start(None, &words, Stdio::inherit())?;
    let until = args.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    while !stop.load(Ordering::Relaxed) && !stats.ended() {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
