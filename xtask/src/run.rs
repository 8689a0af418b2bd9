//! The main job.
//!
//! As root: a tenant's host, a gateway, an underlay, a second gateway and a storage server, each in a
//! namespace of its own. The storage server is a data plane too; it exports a thin volume over NBD:
//!
//! ```text
//!  host 10.0.0.1 ──veth── gateway a ══ VXLAN over 192.0.2.0/24 ══ gateway b ──veth── volume 10.0.0.2
//! ```
//!
//! Without root: two gateways joined by UDP sockets on loopback, with the built-in generator as the tenant, and
//! the volume on loopback beside them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{self, Held, Namespace};
use crate::tools::{self, Outcome};

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub struct Args {
    /// Tunnel between the gateways
    #[arg(long, value_parser = ["vxlan", "geneve"], default_value = "vxlan")]
    encapsulation: String,
    /// Driver of the gateways' ports (as root)
    #[arg(long, value_parser = ["af_packet", "af_xdp"], default_value = "af_packet")]
    driver: String,
    /// Run the printed fio line at once, for this many seconds, and end
    #[arg(long, value_name = "SECONDS")]
    load: Option<u32>,
    /// End after this many seconds instead of at Ctrl-C
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// As if without root: UDP sockets on loopback and the built-in generator
    #[arg(long)]
    rootless: bool,
    /// Keep the exported volume in this directory, instead of in a temporary one that goes away
    #[arg(long, value_name = "DIR")]
    volume_dir: Option<PathBuf>,
}

/// Runs the main job until Ctrl-C.
pub fn run(args: &Args) -> Outcome {
    let folder = Folder::new()?;
    let daemon = lab::daemon()?;
    if tools::is_root() && !args.rootless {
        let missing = tools::ensure(tools::RUN_TOOLS)?;
        if !missing.is_empty() {
            return Err(format!("{} could not be installed", missing.join(", ")));
        }
        with_namespaces(args, &folder.0, &daemon)
    } else {
        eprintln!("without root: two gateways over UDP on loopback, the built-in generator as tenant");
        over_loopback(args, &folder.0, &daemon)
    }
}

/// A folder for configurations and sockets that goes away with us.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Folder> {
        let path = std::env::temp_dir().join(format!("tidegate-{}", std::process::id()));
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

/// One side of the demonstration.
struct Side {
    name: &'static str,
    cpu: usize,
    underlay: &'static str,
    peer_underlay: &'static str,
    local: &'static str,
    local_mac: &'static str,
    remote: &'static str,
    remote_mac: &'static str,
}

const HOST: Side = Side {
    name: "a",
    cpu: 0,
    underlay: "192.0.2.1",
    peer_underlay: "192.0.2.2",
    local: "10.0.0.1",
    local_mac: "02:00:00:00:00:01",
    remote: "10.0.0.2",
    remote_mac: "02:00:00:00:00:02",
};

const SERVER: Side = Side {
    name: "b",
    cpu: 1,
    underlay: HOST.peer_underlay,
    peer_underlay: HOST.underlay,
    local: HOST.remote,
    local_mac: HOST.remote_mac,
    remote: HOST.local,
    remote_mac: HOST.local_mac,
};

/// Ports that clients expect.
const NBD_PORT: u16 = 10809;
const NVME_PORT: u16 = 4420;

const VOLUME: &str = r#"
# The volume is at the NBD server of tenant blue. It may move 40 MB/s for as long as its credits last
# (64 MB of them), then 10 MB/s; idle time earns them back.
[[volume]]
name = "disk"
tenant = "blue"
server = "10.0.0.2:10809"
bytes = { burst = { bank = "64MB", fill = "10MB/s" }, peak = "40MB/s" }
park = { frames = 1024, bytes = "4MiB" }
"#;

fn config(side: &Side, args: &Args, folder: &Path, ports: &str, volume: &str) -> Outcome<(PathBuf, PathBuf)> {
    let socket = folder.join(format!("{}.sock", side.name));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!(
        r#"# Gateway {name} of the demonstration.
[node]
name = "gateway-{name}"
control_socket = "{socket}"
metrics = "off"

[[worker]]
cpu = {cpu}
{ports}
[[tenant]]
name = "blue"
vni = 100
encapsulation = "{encapsulation}"
attachments = [{{ port = "tenant", sources = [{{ mac = "{local_mac}", ip = "{local}" }}] }}]
remotes = [{{ ip = "{remote}", mac = "{remote_mac}", vtep = "{peer}" }}]
{volume}"#,
        name = side.name,
        socket = socket.display(),
        cpu = side.cpu.min(cpus - 1),
        encapsulation = args.encapsulation,
        local_mac = side.local_mac,
        local = side.local,
        remote = side.remote,
        remote_mac = side.remote_mac,
        peer = side.peer_underlay,
    );
    let path = folder.join(format!("{}.toml", side.name));
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((path, socket))
}

/// What NVMe hosts call the demonstration's volume.
const NQN: &str = "nqn.2026-11.com.example:disk";

/// The storage server: a thin volume of 10 GiB, over NBD and NVMe/TCP at `address`, and at a Unix socket in `folder`.
struct Store {
    daemon: Held,
    socket: PathBuf,
    nbd_socket: PathBuf,
}

impl Store {
    fn start(
        args: &Args,
        space: Option<&Namespace>,
        daemon: &Path,
        folder: &Path,
        (address, nbd_port, nvme_port): (&str, u16, u16),
    ) -> Outcome<Store> {
        let (socket, nbd_socket) = (folder.join("store.sock"), folder.join("nbd.sock"));
        let directory = match &args.volume_dir {
            Some(given) => {
                std::path::absolute(given).map_err(|error| format!("{}: {error}", given.display()))?
            }
            None => folder.join("volume"),
        };
        let text = format!(
            r#"# The storage server of the demonstration.
[node]
name = "store"
control_socket = "{socket}"
metrics = "off"

[nbd]
listen = ["{address}:{nbd_port}", "{nbd}"]
public = true

[nvme]
listen = ["{address}:{nvme_port}"]
public = true

[[export]]
name = "disk"
medium = "file"
directory = "{directory}"
create = true
size = "10GiB"
nqn = "{NQN}"
"#,
            socket = socket.display(),
            nbd = nbd_socket.display(),
            directory = directory.display(),
        );
        let path = folder.join("store.toml");
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        let daemon = lab::start_daemon(space, daemon, &path, &socket)?;
        Ok(Store { daemon, socket, nbd_socket })
    }

    /// How to attach it on this machine.
    fn print(&self, daemon: &Path) {
        let socket = self.nbd_socket.display();
        let uri = format!("nbd+unix:///disk?socket={socket}");
        println!("The volume is a thin one of 10 GiB. Attach it from this machine, in another terminal:\n");
        println!("  nbdinfo '{uri}'");
        println!("  fio --name=disk --ioengine=nbd --uri='{uri}' --rw=randrw --bs=4k --iodepth=16 --size=1G");
        println!("  qemu-img convert -n -f raw -O raw image.raw '{uri}'");
        println!("  nbd-client -unix {socket} -N disk /dev/nbd0        # root, module nbd");
        println!("  {} stats --watch --socket {}\n", daemon.display(), self.socket.display());
    }
}

/// The usual port of loopback, or any other that is free.
fn loopback_port(usual: u16) -> Outcome<u16> {
    let bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port));
    let socket = bind(usual).or_else(|_taken| bind(0));
    let address = socket.and_then(|socket| socket.local_addr());
    address.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

/// How a Linux host attaches over NVMe/TCP; `inside` leads to where it is.
fn print_nvme(inside: &str, address: &str, port: u16) {
    println!("  {inside}nvme discover -t tcp -a {address} -s {port}        # root, module nvme-tcp");
    println!("  {inside}nvme connect -t tcp -a {address} -s {port} -n {NQN}");
}

fn with_namespaces(args: &Args, folder: &Path, daemon: &Path) -> Outcome {
    let [host, gateway_a, gateway_b, server] =
        [Namespace::new()?, Namespace::new()?, Namespace::new()?, Namespace::new()?];
    host.veth("eth0", &gateway_a, "tenant0", 1500)?;
    server.veth("eth0", &gateway_b, "tenant0", 1500)?;
    // 1600 leaves room for the outer headers around a tenant's 1500.
    gateway_a.veth("under0", &gateway_b, "under0", 1600)?;
    for (space, side) in [(&host, &HOST), (&server, &SERVER)] {
        space.ip(&format!("link set eth0 address {}", side.local_mac))?;
        space.ip(&format!("addr add {}/24 dev eth0", side.local))?;
        if args.driver == "af_xdp" {
            // AF_XDP carries neither super-segments nor unfinished checksums.
            tools::quiet(
                space.command("ethtool").args(["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]),
            )?;
        }
    }
    let mut daemons = Vec::new();
    for (space, side, volume) in [(&gateway_a, &HOST, VOLUME), (&gateway_b, &SERVER, "")] {
        let ports = format!(
            r#"
[[port]]
name = "tenant"
driver = "{driver}"
interface = "tenant0"

[[port]]
name = "uplink"
driver = "{driver}"
interface = "under0"

[[underlay]]
port = "uplink"
addresses = ["{underlay}/24"]
"#,
            driver = args.driver,
            underlay = side.underlay
        );
        let (config, socket) = config(side, args, folder, &ports, volume)?;
        daemons.push((lab::start_daemon(Some(space), daemon, &config, &socket)?, socket));
    }
    let store = Store::start(args, Some(&server), daemon, folder, ("10.0.0.2", NBD_PORT, NVME_PORT))?;
    lab::wait_for("the volume through both gateways", Duration::from_secs(20), || {
        tools::output(host.command("nbdinfo").args(["--size", "nbd://10.0.0.2:10809/disk"])).is_ok()
    })?;
    // Writes: what a thin volume has never written it reads as holes, which cross the gateways as a few bytes.
    let fio = "fio --name=disk --ioengine=nbd --uri=nbd://10.0.0.2:10809/disk --rw=randwrite --bs=64k \
               --iodepth=32 --size=256M --time_based --runtime=30";
    println!("\nThe host reaches its volume through gateway a, {}, gateway b.", args.encapsulation);
    println!("Attach from the host's namespace, in another terminal:\n");
    println!("  nsenter -t {} -n {fio}", host.pid());
    print_nvme(&format!("nsenter -t {} -n ", host.pid()), "10.0.0.2", NVME_PORT);
    println!();
    println!("NBD at gateway a: 40 MB/s while its 64 MB of credits last, then 10 MB/s.\n");
    store.print(daemon);
    if let Some(seconds) = args.load {
        let fio = fio.replace("--runtime=30", &format!("--runtime={seconds}"));
        let words: Vec<&str> = fio.split_whitespace().skip(1).collect();
        tools::quiet(host.command("fio").args(words))?;
        tools::quiet(Command::new(daemon).args(["stats", "--socket"]).arg(&daemons[0].1))?;
    } else {
        watch(args, daemon, &daemons[0].1)?;
    }
    store.daemon.stop()?;
    daemons.into_iter().try_for_each(|(daemon, _)| daemon.stop())
}

fn over_loopback(args: &Args, folder: &Path, daemon: &Path) -> Outcome {
    let mut daemons = Vec::new();
    let sides = [(&SERVER, "", "127.0.0.2", "127.0.0.1"), (&HOST, "", "127.0.0.1", "127.0.0.2")];
    for (side, volume, ours, peer) in sides {
        let tenant = if side.name == "a" {
            "driver = \"generator\"\nframe_bytes = 1400\nflows = 64\nrate_pps = 20000"
        } else {
            "driver = \"sink\""
        };
        let ports = format!(
            r#"
[[port]]
name = "tenant"
{tenant}

[[port]]
name = "uplink"
driver = "udp"
listen = "{ours}:4789"

[[underlay]]
port = "uplink"
addresses = ["{ours}/8"]
"#
        );
        let side = Side { underlay: ours, peer_underlay: peer, ..*side };
        let (config, socket) = config(&side, args, folder, &ports, volume)?;
        daemons.push((lab::start_daemon(None, daemon, &config, &socket)?, socket));
    }
    let nvme_port = loopback_port(NVME_PORT)?;
    let store = Store::start(args, None, daemon, folder, ("127.0.0.1", loopback_port(NBD_PORT)?, nvme_port))?;
    println!();
    store.print(daemon);
    print_nvme("", "127.0.0.1", nvme_port);
    println!();
    watch(args, daemon, &daemons[1].1)?;
    store.daemon.stop()?;
    daemons.into_iter().try_for_each(|(daemon, _)| daemon.stop())
}

/// Shows live figures until Ctrl-C or until the time is over.
fn watch(args: &Args, daemon: &Path, socket: &Path) -> Outcome {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| error.to_string())?;
    }
    println!("Live figures of gateway a; Ctrl-C ends everything.");
    let words = [&*daemon.to_string_lossy(), "stats", "--watch", "--socket", &*socket.to_string_lossy()];
    let mut stats = Held::start(None, &words, Stdio::inherit())?;
    let until = args.seconds.map(|seconds| std::time::Instant::now() + Duration::from_secs(seconds));
    while !stop.load(Ordering::Relaxed) && !stats.ended() {
        if until.is_some_and(|until| std::time::Instant::now() > until) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("\nstopping");
    Ok(())
}
