//! The configuration file as it is written: one struct per table, each key with its unit and default.
//!
//! Nothing is checked here beyond types and names; [`super::lower`] turns a whole [`File`] into what the
//! engine runs, or says which entry is wrong.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use contract::rule::{Action, Protocol};
use serde::Deserialize;

use super::units::{ByteRate, Bytes, Nanos};

/// A whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// Name and addresses of the daemon.
    pub node: Node,
    /// Packet memory.
    pub frames: Frames,
    /// Workers; none = one, not pinned.
    pub worker: Vec<Worker>,
    /// When workers spin, pause and sleep.
    pub idle: Idle,
    /// Ports.
    pub port: Vec<Port>,
    /// Which ports lead to other nodes.
    pub underlay: Vec<Underlay>,
    /// Tenants.
    pub tenant: Vec<Tenant>,
    /// Rules beyond carrying frames between a tenant's endpoints.
    pub rule: Vec<Rule>,
    /// Where trapped frames go.
    pub trap: Option<Trap>,
    /// What is throttled by itself.
    pub volume: Vec<Volume>,
    /// What volumes share.
    pub group: Vec<Group>,
    /// What all volumes of the node share.
    pub throttle: Pool,
    /// Memory and connections for serving volumes.
    pub serve: Serve,
    /// Which I/Os of exports are followed.
    pub trace: Trace,
    /// Where NBD clients come in.
    pub nbd: Nbd,
    /// Where NVMe hosts come in.
    pub nvme: Nvme,
    /// Who says what else this node serves.
    pub controlplane: Option<super::control::ControlPlane>,
    /// Volumes that this node serves itself.
    pub export: Vec<Export>,
}

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name in logs, statistics and metrics. Default "tidegate".
    pub name: String,
    /// Unix socket for `stats` and `reload`. Default: /run/tidegate/NAME.sock.
    pub control_socket: Option<PathBuf>,
    /// Address for Prometheus, or "off". Default "127.0.0.1:9464".
    pub metrics: String,
    /// Allow a metrics address other than loopback. Default false.
    pub metrics_public: bool,
}

impl Default for Node {
    fn default() -> Node {
        let (name, metrics) = ("tidegate".to_owned(), "127.0.0.1:9464".to_owned());
        Node { name, control_socket: None, metrics, metrics_public: false }
    }
}

/// `[frames]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Frames {
    /// Chunks of 4 KiB. Default 16384 (64 MiB).
    pub count: u32,
    /// Chunks of 72 KiB, for super-segments. Default 512 (36 MiB).
    pub jumbo_count: u32,
    /// Use hugepages of 2 MiB where there are some. Default true.
    pub hugepages: bool,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { count: 16_384, jumbo_count: 512, hugepages: true }
    }
}

/// `[[worker]]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// Processor to pin to. Default: not pinned.
    pub cpu: Option<usize>,
}

/// `[idle]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Idle {
    /// What the other keys start from. Default "adaptive".
    pub mode: IdleMode,
    /// Time without work during which a worker polls flat out.
    pub spin: Option<Nanos>,
    /// Time after that during which it pauses between polls, while that pays.
    pub pause: Option<Nanos>,
    /// Longest time kept awake because another worker holds something for it; at most 1ms.
    pub stay_awake: Option<Nanos>,
    /// Frames in another worker's queue above which it stays awake.
    pub upstream_threshold: Option<usize>,
    /// Longest sleep of a worker that has to poll an input; 1us to 1ms.
    pub max_sleep: Option<Nanos>,
}

/// `idle.mode`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleMode {
    /// Spin a little, then sleep.
    #[default]
    Adaptive,
    /// Never sleep.
    Spin,
    /// Sleep at once.
    Block,
}

/// `[[port]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name by which the other tables refer to it.
    pub name: String,
    /// Driver.
    pub driver: Driver,
    /// Interface (af_xdp, af_packet).
    pub interface: Option<String>,
    /// Queue of the interface, or the first of them with `workers` (af_xdp). Default 0.
    pub queue: Option<u32>,
    /// Worker that polls it, by its place in the file. Default 0.
    pub worker: Option<usize>,
    /// Instead: several workers, each polls a queue of its own (af_xdp) or a share of the flows (af_packet).
    #[serde(default)]
    pub workers: Vec<usize>,
    /// Entries of each ring (af_xdp, af_packet). Default 2048 (af_xdp), 1024 (af_packet).
    pub ring_frames: Option<u32>,
    /// Frames that one system call may receive by polling the driver itself (af_xdp). Default 0: off.
    pub busy_poll_frames: Option<u32>,
    /// Share an interface's flows among all sockets of this number; needed with `workers` (af_packet).
    pub fanout_group: Option<u16>,
    /// Local address and UDP port (udp).
    pub listen: Option<SocketAddr>,
    /// Length of generated frames, bytes (generator). Default 64.
    pub frame_bytes: Option<usize>,
    /// Flows among the generated frames (generator). Default 1.
    pub flows: Option<u32>,
    /// Frames per second (generator). Default: as many as are asked for.
    pub rate_pps: Option<u64>,
    /// Capture file whose packets arrive (pcap).
    pub replay: Option<PathBuf>,
    /// Times to replay it, 0 = for ever (pcap). Default 1.
    pub loops: Option<u64>,
    /// Keep the file's distances in time (pcap). Default false.
    pub paced: Option<bool>,
    /// Capture file for everything that passes (any driver).
    pub record: Option<Record>,
    /// Things to go wrong on purpose (any driver).
    pub faults: Option<Faults>,
}

/// `port.driver`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// A kernel interface, bypassing its stack.
    AfXdp,
    /// A kernel interface by packet rings; carries super-segments.
    AfPacket,
    /// A UDP socket; underlay only.
    Udp,
    /// Makes frames for the tenant attached to it, and takes what comes back.
    Generator,
    /// Takes everything, makes nothing.
    Sink,
    /// Capture files.
    Pcap,
}

/// `port.record`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The file; overwritten.
    pub file: PathBuf,
    /// Stop before it grows beyond this. Default 64MiB.
    pub limit: Option<Bytes>,
}

/// `port.faults`: probabilities between 0 and 1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Same seed, same faults. Default 0.
    pub seed: u64,
    /// Lost.
    pub loss: f64,
    /// Sent twice.
    pub duplicate: f64,
    /// Swapped with the next.
    pub reorder: f64,
    /// A bit flipped.
    pub corrupt: f64,
    /// Delayed by `delay_by`.
    pub delay: f64,
    /// How long. Default 1ms.
    pub delay_by: Option<Nanos>,
}

/// `[[underlay]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underlay {
    /// The port.
    pub port: String,
    /// Our addresses on it with their prefix: at most one of IPv4 and one of IPv6.
    pub addresses: Vec<String>,
    /// Routers for endpoints outside the prefixes, at most one per family.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Our MAC. Default: the interface's.
    pub mac: Option<String>,
    /// Largest outer IP packet, bytes. Default: the interface's.
    pub mtu: Option<u16>,
    /// Outer TTL. Default 64.
    pub ttl: Option<u8>,
    /// Set "don't fragment". Default true.
    pub df: Option<bool>,
    /// Outer DSCP: "copy" or 0 to 63. Default "copy".
    pub dscp: Option<DscpKey>,
    /// Fill the outer UDP checksum. Default: only with an IPv6 address (RFC 8200, clause 8.1).
    pub outer_checksum: Option<bool>,
    /// UDP port of VXLAN. Default 4789.
    pub vxlan_port: Option<u16>,
    /// UDP port of Geneve. Default 6081.
    pub geneve_port: Option<u16>,
}

/// `underlay.dscp`
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum DscpKey {
    /// A number.
    Fixed(u8),
    /// "copy".
    Word(String),
}

/// `[[tenant]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Name.
    pub name: String,
    /// Network identifier, 0 to 16777215.
    pub vni: u32,
    /// Tunnel. Default "vxlan".
    #[serde(default)]
    pub encapsulation: EncapsulationKey,
    /// Underlay port. Default: the first underlay.
    pub underlay: Option<String>,
    /// Its ports here.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// Its endpoints on other nodes.
    #[serde(default)]
    pub remotes: Vec<Remote>,
}

/// `tenant.encapsulation`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncapsulationKey {
    /// RFC 7348.
    #[default]
    Vxlan,
    /// RFC 8926.
    Geneve,
}

/// `tenant.attachments`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The port.
    pub port: String,
    /// 802.1Q VLAN, 1 to 4094. Default: untagged.
    pub vlan: Option<u16>,
    /// Who may send here.
    #[serde(default)]
    pub sources: Vec<Source>,
}

/// `tenant.attachments.sources`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Address, or prefix.
    pub ip: String,
    /// Its MAC. Default: any.
    pub mac: Option<String>,
}

/// `tenant.remotes`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Address, or prefix.
    pub ip: String,
    /// Its MAC, to answer ARP and neighbour discovery with.
    pub mac: Option<String>,
    /// Tunnel endpoint: an address, or address:port.
    pub vtep: String,
}

/// `[[rule]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Tenant.
    pub tenant: String,
    /// Destination: an address, a prefix or a MAC.
    pub to: String,
    /// "tcp" or "udp". Default: any.
    pub protocol: Option<Protocol>,
    /// Destination port. Default: any.
    pub port: Option<u16>,
    /// Source port. Default: any.
    pub source_port: Option<u16>,
    /// What to do.
    pub action: Action,
    /// Tunnel endpoint (forward).
    pub vtep: Option<String>,
    /// Volume that pays (forward). Default: the one with the server's address and port, if any.
    pub volume: Option<String>,
}

/// `[trap]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trap {
    /// Port that trapped frames are sent to.
    pub port: String,
}

/// `[[volume]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Tenant.
    pub tenant: String,
    /// Address and port of its server: what goes there and comes from there pays.
    pub server: SocketAddr,
    /// Group whose pool it also draws from.
    pub group: Option<String>,
    /// "gp2-like" (needs `size`) or "gp3-like" (needs `packets.rate` and `bytes.rate`).
    pub preset: Option<Preset>,
    /// Size of the volume, for the preset.
    pub size: Option<Bytes>,
    /// Limits in bytes.
    pub bytes: Option<ByteLimits>,
    /// Limits in packets.
    pub packets: Option<PacketLimits>,
    /// Share while a pool is short. Default: the base rate.
    pub weight: Option<u64>,
    /// Bounds on what waits.
    #[serde(default)]
    pub park: Park,
}

/// `volume.preset`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// A bank of 5.4 million credits, 3 per GiB and second, spent at 3,000 per second.
    Gp2Like,
    /// What is provisioned, no bank.
    Gp3Like,
}

/// `volume.bytes`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByteLimits {
    /// Provisioned rate.
    pub rate: Option<ByteRate>,
    /// Bank of credits.
    pub burst: Option<ByteBurst>,
    /// Most that the sum of everything may reach.
    pub peak: Option<ByteRate>,
    /// Deepest debt of the provisioned rate.
    pub debt: Option<Bytes>,
    /// Reduced charges while the node has slack.
    pub bands: Vec<BandKey>,
}

/// `volume.bytes.burst`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByteBurst {
    /// Most credits held.
    pub bank: Bytes,
    /// Credits earned.
    pub fill: ByteRate,
}

/// `volume.packets`, per second
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PacketLimits {
    /// Provisioned rate.
    pub rate: Option<u64>,
    /// Bank of credits.
    pub burst: Option<PacketBurst>,
    /// Most that the sum of everything may reach.
    pub peak: Option<u64>,
    /// Deepest debt of the provisioned rate.
    pub debt: Option<u32>,
    /// Reduced charges while the node has slack.
    pub bands: Vec<BandKey>,
}

/// `volume.packets.burst`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketBurst {
    /// Most credits held.
    pub bank: u64,
    /// Credits earned per second.
    pub fill: u64,
}

/// One reduced charge: above this level of the node's pool, this part of the cost is charged.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandKey {
    /// Level of the node's pool, 0 to 0.999 of its cap.
    pub above: f64,
    /// Part of the cost, 0 to 1.
    pub charge: f64,
}

/// `volume.park`, in each direction
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Park {
    /// Most frames waiting.
    pub frames: Option<u32>,
    /// Most bytes waiting.
    pub bytes: Option<Bytes>,
}

/// `[serve]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Serve {
    /// Payload memory of all workers together, shared so that no export's clients can take all of it. Default 256MiB,
    /// taken only if something is exported.
    pub memory: Bytes,
    /// Use hugepages of 2 MiB where there are some. Default true.
    pub hugepages: bool,
    /// Connections per worker. One export gets as many as it leaves to others: half of them while it is alone.
    /// Default 1024.
    pub connections: u32,
}

impl Default for Serve {
    fn default() -> Serve {
        Serve { memory: Bytes(256 << 20), hugepages: true, connections: 1024 }
    }
}

/// `[trace]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trace {
    /// Follow one in so many requests of each export, 0 = none. Default 64.
    pub sample: u32,
    /// Records of 64 bytes per worker that wait to be collected. Default 16384.
    pub records: usize,
    /// Requests kept to be shown, the newest. Default 1024.
    pub recent: usize,
    /// Outliers kept, the newest. Default 1024.
    pub outliers: usize,
    /// Outliers kept per second. Default 32.
    pub outliers_per_second: u32,
    /// No request that is quicker is an outlier. Default 1ms.
    pub outlier_floor: Nanos,
    /// Time over which latencies are told and outliers compared. Default 10s.
    pub window: Nanos,
}

impl Default for Trace {
    fn default() -> Trace {
        Trace {
            sample: 64,
            records: 16_384,
            recent: 1024,
            outliers: 1024,
            outliers_per_second: 32,
            outlier_floor: Nanos(1_000_000),
            window: Nanos(10_000_000_000),
        }
    }
}

/// `[nbd]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nbd {
    /// Addresses with ports, and absolute paths of Unix sockets. Default: none.
    pub listen: Vec<String>,
    /// Allow an address other than loopback without TLS: what is said there is neither encrypted nor
    /// authenticated. Default false.
    pub public: bool,
    /// Encryption. Default: none.
    pub tls: Option<Tls>,
}

/// `nbd.tls`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM file with the server's certificate, and those that vouch for it.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with certificates of which one must have signed a client's. Default: any client may come.
    pub client_ca: Option<PathBuf>,
    /// Refuse clients without TLS. Default true.
    #[serde(default = "required")]
    pub required: bool,
}

fn required() -> bool {
    true
}

/// `[nvme]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nvme {
    /// Addresses with ports, to connect to and for discovery. Default: none.
    pub listen: Vec<String>,
    /// Allow an address other than loopback: what is said there is neither encrypted nor authenticated.
    /// Default false.
    pub public: bool,
    /// Number of the first controller of each subsystem. Default 1.
    pub controller_first: Option<u16>,
    /// Controllers of each subsystem, at most: hosts that are attached to it at once. Default 128.
    pub controllers: Option<u16>,
    /// I/O queues of each controller, at most, 1 to 127: hosts ask for one per processor. Default 64.
    pub queues: Option<u16>,
    /// Places of each queue, at most, 32 to 1024: one less than that many commands are under way. Default 256.
    pub queue_entries: Option<u16>,
}

/// `[[export]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// What hosts call it.
    pub name: String,
    /// Text for people.
    #[serde(default)]
    pub description: String,
    /// Where its bytes are.
    pub medium: Medium,
    /// Size; of files, what to make them if they are not there, or to grow them to. Default: as they are.
    pub size: Option<Bytes>,
    /// Size of a block, 512 or 4096; for files only to create them. Default 4096.
    pub block: Option<u32>,
    /// Directory of a volume in files.
    pub directory: Option<PathBuf>,
    /// Make the volume if its directory is not there. Default false.
    #[serde(default)]
    pub create: bool,
    /// Identity of a volume in files, 32 hexadecimal digits: what it gets when it is made, and must have.
    pub identity: Option<String>,
    /// Another node serves it: only its NVMe names are here, until this is false. Default false.
    #[serde(default)]
    pub standby: bool,
    /// Refuse changes. Default false.
    #[serde(default)]
    pub read_only: bool,
    /// Worker that serves it. Default 0.
    #[serde(default)]
    pub worker: usize,
    /// Qualified name of its NVMe subsystem. Default: one of its own, made of its volume's identity.
    pub nqn: Option<String>,
    /// Its namespace (NSID) in that, 1 to 256: exports with the same nqn are namespaces of one subsystem. Default 1.
    pub namespace: Option<u32>,
    /// Qualified names of the NVMe hosts that may attach. Default: all.
    pub hosts: Option<Vec<String>>,
    /// "gp2-like" or "gp3-like".
    pub preset: Option<Preset>,
    /// Limits in bytes.
    pub bytes: Option<ByteLimits>,
    /// Limits in operations: one for each 256 KiB begun.
    pub operations: Option<PacketLimits>,
    /// Group whose pool it shares with the other exports in it.
    pub group: Option<String>,
    /// Share while a pool is short. Default: the base rate.
    pub weight: Option<u64>,
    /// Follow one in so many requests, 0 = none. Default: trace.sample.
    pub sample: Option<u32>,
    /// Things to go wrong at its medium on purpose.
    pub faults: Option<MediumFaults>,
}

/// `export.faults`: probabilities between 0 and 1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MediumFaults {
    /// Same seed, same faults. Default 0.
    pub seed: u64,
    /// Reads answered late by `delay_by`.
    pub read_delay: f64,
    /// Writes answered late by `delay_by`.
    pub write_delay: f64,
    /// How late. Default 1ms.
    pub delay_by: Option<Nanos>,
    /// Reads that fail.
    pub read_error: f64,
    /// Writes that fail.
    pub write_error: f64,
}

/// `export.medium`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// A thin volume in files of a directory.
    File,
    /// Memory, gone with the daemon.
    Memory,
    /// Nothing: writes vanish. To measure what lies above.
    Null,
}

/// `[[group]]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name.
    pub name: String,
    /// Bytes per second.
    pub bytes: Option<ByteRate>,
    /// Most bytes saved. Default: 100 ms worth.
    pub bytes_cap: Option<Bytes>,
    /// Packets per second.
    pub packets: Option<u64>,
    /// Most packets saved. Default: 100 ms worth.
    pub packets_cap: Option<u64>,
    /// Operations per second of exports, whose bytes count apart from those of volumes that pass through.
    pub operations: Option<u64>,
    /// Most operations saved. Default: 100 ms worth.
    pub operations_cap: Option<u64>,
}

/// `[throttle]`
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Bytes per second.
    pub bytes: Option<ByteRate>,
    /// Most bytes saved. Default: 100 ms worth.
    pub bytes_cap: Option<Bytes>,
    /// Packets per second.
    pub packets: Option<u64>,
    /// Most packets saved. Default: 100 ms worth.
    pub packets_cap: Option<u64>,
    /// Operations per second of exports, whose bytes count apart from those of volumes that pass through.
    pub operations: Option<u64>,
    /// Most operations saved. Default: 100 ms worth.
    pub operations_cap: Option<u64>,
}
