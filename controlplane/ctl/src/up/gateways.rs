//! The way of the demonstration's tenant to its volume: two gateways, as root each in a namespace of its own.
//!
//! ```text
//!  host 10.0.0.1 ──veth── gateway a ══ VXLAN over 192.0.2.0/24 ══ gateway b ──veth── volume 10.0.0.2
//! ```
//!
//! Without root: two gateways joined by UDP sockets on loopback, with the built-in generator as the tenant.

use std::path::{Path, PathBuf};

use super::Args;
use super::lab::{Held, Namespace, Outcome, output, write};

/// One side.
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

/// The running gateways, and the namespaces at their ends.
pub struct Gateways {
    daemons: Vec<Held>,
    /// Control socket of gateway a.
    pub socket: PathBuf,
    /// Where the tenant's host is, and where its volume is.
    pub ends: Option<(Namespace, Namespace)>,
    _between: Vec<Namespace>,
}

impl Gateways {
    /// As root.
    pub fn in_namespaces(args: &Args, folder: &Path, daemon: &Path) -> Outcome<Gateways> {
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
                output(
                    space.command("ethtool").args(["-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]),
                )?;
            }
        }
        let (mut daemons, mut sockets) = (Vec::new(), Vec::new());
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
            daemons.push(start(Some(space), daemon, &config)?);
            sockets.push(socket);
        }
        Ok(Gateways {
            daemons,
            socket: sockets.swap_remove(0),
            ends: Some((host, server)),
            _between: vec![gateway_a, gateway_b],
        })
    }

    /// Without root.
    pub fn over_loopback(args: &Args, folder: &Path, daemon: &Path) -> Outcome<Gateways> {
        let (mut daemons, mut sockets) = (Vec::new(), Vec::new());
        for (side, ours, peer) in [(&SERVER, "127.0.0.2", "127.0.0.1"), (&HOST, "127.0.0.1", "127.0.0.2")] {
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
            let (config, socket) = config(&side, args, folder, &ports, "")?;
            daemons.push(start(None, daemon, &config)?);
            sockets.push(socket);
        }
        Ok(Gateways { daemons, socket: sockets.swap_remove(1), ends: None, _between: Vec::new() })
    }

    /// Stops them in order.
    pub fn stop(self) -> Outcome {
        self.daemons.into_iter().try_for_each(Held::stop)
    }
}

fn start(space: Option<&Namespace>, daemon: &Path, config: &Path) -> Outcome<Held> {
    Held::daemon(space, &[&daemon.to_string_lossy(), "run", "--config", &config.to_string_lossy()])
}

fn config(side: &Side, args: &Args, folder: &Path, ports: &str, volume: &str) -> Outcome<(PathBuf, PathBuf)> {
    let socket = folder.join(format!("{}.sock", side.name));
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
        cpu = side.cpu.min(super::cpus() - 1),
        encapsulation = args.encapsulation,
        local_mac = side.local_mac,
        local = side.local,
        remote = side.remote,
        remote_mac = side.remote_mac,
        peer = side.peer_underlay,
    );
    let path = folder.join(format!("{}.toml", side.name));
    write(&path, &text)?;
    Ok((path, socket))
}
