//! From a [`File`] to what the engine runs: names become numbers, texts become types, references are
//! followed. The first entry that cannot be right is named, with what to do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use contract::TenantRules;
use contract::rule::{Action, Protocol};
use engine::frame::SlabConfig;
use engine::idle::IdleParams;
use engine::overlay::{self, PortId, Prefix, Tables, TenantId, VolumeId, Vtep};
use engine::port::{PortCaps, PortKind};
use engine::wire::{Mac, VlanId, Vni};
use engine::{Plan, PortPlan, PortRole, Snapshot, Throttle, WorkerPlan};

use super::file::{Driver, DscpKey, EncapsulationKey, File, IdleMode};
use super::names::Names;
use super::units::Nanos;
use super::{exports, limits, ports, told};

/// An entry of the file that cannot be right.
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A text that is not what its key wants.
    #[error("{place}: \"{text}\" is not {expected}")]
    Text {
        /// Which entry.
        place: String,
        /// What it says.
        text: String,
        /// What it may say.
        expected: &'static str,
    },
    /// A name that nothing has.
    #[error("{place}: there is no {kind} \"{name}\"{hint}")]
    Unknown {
        /// Which entry.
        place: String,
        /// What is named.
        kind: &'static str,
        /// The name.
        name: String,
        /// The nearest name, if one is near.
        hint: String,
    },
    /// A name that two things have.
    #[error("{kind} \"{name}\" appears twice; names are unique")]
    Twice {
        /// What is named.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A key that is missing, superfluous or out of range.
    #[error("{place}: {what}")]
    Key {
        /// Which entry.
        place: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The rules that a control plane gives a tenant.
    #[error("the control plane's rules of tenant \"{name}\": {source}")]
    Told {
        /// Whose.
        tenant: contract::TenantId,
        /// Its name.
        name: String,
        /// What is wrong with them here.
        source: Box<LowerError>,
    },
    /// The overlay refuses the whole.
    #[error("{source}{legend}")]
    Table {
        /// What is wrong, in numbers.
        source: overlay::TableError,
        /// The names of the numbers.
        legend: String,
    },
    /// A group's pool, or the node's.
    #[error("{place}: {source}")]
    Pool {
        /// Which entry.
        place: String,
        /// What is wrong.
        source: engine::throttle::PoolError,
    },
    /// A volume's limits.
    #[error("volume \"{name}\": {source}")]
    Limits {
        /// The volume.
        name: String,
        /// What is wrong.
        source: engine::throttle::LimitsError,
    },
}

/// What the node is made of.
pub fn plan(file: &File) -> Result<Plan, LowerError> {
    unique("port", file.port.iter().map(|port| &port.name))?;
    let name = &file.node.name;
    if name.is_empty() || name.contains(['/', '\0']) {
        let what = format!("name = \"{name}\" cannot name a socket; use letters, digits, '-', '_' and '.'");
        return Err(LowerError::Key { place: "[node]".into(), what });
    }
    let workers: Vec<WorkerPlan> = match file.worker.as_slice() {
        [] => vec![WorkerPlan { cpu: None }],
        some => some.iter().map(|worker| WorkerPlan { cpu: worker.cpu }).collect(),
    };
    alone_on_processors(&workers)?;
    let trap_port = match &file.trap {
        Some(trap) => Some(port_id(file, "[trap]", &trap.port)?),
        None => None,
    };
    let mut planned = Vec::with_capacity(file.port.len());
    for (index, port) in file.port.iter().enumerate() {
        let place = format!("port \"{}\"", port.name);
        let polling = ports::workers(port, &place, workers.len())?;
        let underlay = file.underlay.iter().any(|underlay| underlay.port == port.name);
        if port.driver == Driver::Udp && !underlay {
            let what =
                "driver = \"udp\" serves only as an underlay; add an [[underlay]] with this port".into();
            return Err(LowerError::Key { place, what });
        }
        let id = PortId(index as u16);
        let role = match (underlay, trap_port == Some(id)) {
            (true, _) => PortRole::Underlay,
            (false, true) => PortRole::Trap,
            (false, false) => PortRole::Tenant,
        };
        let spec = ports::spec(file, port)?;
        for (share, worker) in polling.into_iter().enumerate() {
            let spec = ports::share(&spec, share as u32);
            planned.push(PortPlan { id, name: port.name.clone(), role, worker, spec });
        }
    }
    alone_on_inputs(&planned)?;
    let frames = &file.frames;
    if frames.count == 0 {
        let what = "count = 0 leaves no frame to receive into; the default is 16384".into();
        return Err(LowerError::Key { place: "[frames]".into(), what });
    }
    let slab =
        SlabConfig { frames: frames.count, jumbo_frames: frames.jumbo_count, hugepages: frames.hugepages };
    let volumes_max = (2 * file.volume.len() as u32).next_power_of_two().max(VOLUMES_ROOM);
    let serve = exports::plan(file)?;
    Ok(Plan { slab, workers, ports: planned, trap_port, volumes_max, serve })
}

/// Two workers on one processor would keep each other from running, at full load and when they spin.
fn alone_on_processors(workers: &[WorkerPlan]) -> Result<(), LowerError> {
    for (number, worker) in workers.iter().enumerate() {
        let Some(cpu) = worker.cpu else { continue };
        if let Some(first) = workers[..number].iter().position(|other| other.cpu == Some(cpu)) {
            let what = format!(
                "workers {first} and {number} are both pinned to cpu {cpu}; give each its own, or leave cpu out"
            );
            return Err(LowerError::Key { place: "[[worker]]".into(), what });
        }
    }
    Ok(())
}

/// A queue and a socket have one user.
fn alone_on_inputs(ports: &[PortPlan]) -> Result<(), LowerError> {
    let mut users: HashMap<String, &str> = HashMap::new();
    for port in ports {
        let Some(input) = ports::exclusive(&port.spec) else { continue };
        if let Some(first) = users.insert(input.clone(), &port.name) {
            let what = format!("{input} is already that of port \"{first}\"; only one can have it");
            return Err(LowerError::Key { place: format!("port \"{}\"", port.name), what });
        }
    }
    Ok(())
}

/// Room for volumes that reloads may add without a restart; at least twice as many as there are, so that
/// one reload may exchange them all.
const VOLUMES_ROOM: u32 = 1 << 17;

/// Where metrics are served; `None` = nowhere.
pub fn metrics_address(file: &File) -> Result<Option<SocketAddr>, LowerError> {
    let text = &file.node.metrics;
    if text == "off" {
        return Ok(None);
    }
    let address: SocketAddr = text.parse().map_err(|_| {
        text_error("[node] metrics", text, "an address such as \"127.0.0.1:9464\", nor \"off\"")
    })?;
    if address.ip().is_loopback() || file.node.metrics_public {
        return Ok(Some(address));
    }
    let what = format!("metrics = \"{text}\" is not on loopback; metrics_public = true allows it");
    Err(LowerError::Key { place: "[node]".into(), what })
}

/// What the node does: what the file says, and the rules that a control plane has `told` beside it. `caps` are those of
/// the open ports, in the order of the file: addresses and MTUs that the file leaves to the interface come from there.
pub fn snapshot(
    file: &File,
    told: &[TenantRules],
    version: u64,
    caps: &[Option<PortCaps>],
    names: &mut Names,
    previous: Option<&Tables>,
) -> Result<Snapshot, LowerError> {
    unique("tenant", file.tenant.iter().map(|tenant| &tenant.name))?;
    unique("volume", file.volume.iter().map(|volume| &volume.name))?;
    unique("group", file.group.iter().map(|group| &group.name))?;
    names.tenants.keep(file.tenant.iter().map(|tenant| tenant.name.as_str()));
    names.volumes.keep(file.volume.iter().map(|volume| volume.name.as_str()));
    names.groups.keep(file.group.iter().map(|group| group.name.as_str()));
    let mut config = overlay_config(file, version, caps, names)?;
    let rules = config.rules.len();
    told::add(file, told, names, &mut config)?;
    let tables = Tables::build(&config, previous).map_err(|source| {
        config.rules.truncate(rules);
        let whose = told::whose(file, told, names, &config, previous);
        let error = LowerError::Table { legend: legend(&source, file, told, names), source };
        match whose {
            Some(network) => told::refused(network, error),
            None => error,
        }
    })?;
    let throttle: Throttle = limits::throttle(file, names)?;
    let served = limits::served(file, names)?;
    Ok(Snapshot { version, tables: Arc::new(tables), throttle, served, idle: idle(file)? })
}

/// What the numbers in an error of the overlay are called in the file.
fn legend(error: &overlay::TableError, file: &File, told: &[TenantRules], names: &Names) -> String {
    use overlay::TableError as E;
    let tenant = |id: TenantId| Some(format!("tenant {} is \"{}\"", id.0, names.tenants.name(id.0.into())?));
    let port = |id: PortId| Some(format!("port {} is \"{}\"", id.0, file.port.get(usize::from(id.0))?.name));
    let rule = |at: usize| Some(format!("rule {at} goes to \"{}\"", told::destination(file, told, at)?));
    let volume = |at: usize| Some(format!("volume {at} is \"{}\"", file.volume.get(at)?.name));
    let words = match *error {
        E::TenantNumber { id } | E::DuplicateTenant { id } => vec![tenant(id)],
        E::DuplicateVni { first, second, .. } => vec![tenant(first), tenant(second)],
        E::DuplicatePort { port: id } | E::DuplicateAttachment { port: id, .. } => vec![port(id)],
        E::Underlay { port: id, .. } | E::NoLocalAddress { port: id, .. } => vec![port(id)],
        E::NoRoute { port: id, .. } => vec![port(id)],
        E::UnknownUnderlay { tenant: whose, port: id } => vec![tenant(whose), port(id)],
        E::DuplicateAddress { tenant: id, .. } | E::DuplicateMac { tenant: id, .. } => vec![tenant(id)],
        E::Tuples { tenant: id, .. } => vec![tenant(id)],
        E::DuplicateRule { first, second } => vec![rule(first), rule(second)],
        E::MacWithTransport { position } => vec![rule(position)],
        E::ForeignVolume { position, volume } => vec![
            rule(position),
            names.volumes.name(volume.0).map(|name| format!("volume {} is \"{name}\"", volume.0)),
        ],
        E::DuplicateVolume { position } => vec![volume(position)],
        _ => Vec::new(),
    };
    let words: Vec<String> = words.into_iter().flatten().collect();
    if words.is_empty() { String::new() } else { format!(" ({})", words.join(", ")) }
}

fn idle(file: &File) -> Result<IdleParams, LowerError> {
    let keys = &file.idle;
    let mut params = match keys.mode {
        IdleMode::Adaptive => IdleParams::default(),
        IdleMode::Spin => IdleParams::pure_spin(),
        IdleMode::Block => IdleParams::block_at_once(),
    };
    let set = |param: &mut u64, key: Option<Nanos>| {
        if let Some(key) = key {
            *param = key.0;
        }
    };
    set(&mut params.spin_ns, keys.spin);
    set(&mut params.pause_ns, keys.pause);
    set(&mut params.stay_awake_ns, keys.stay_awake);
    set(&mut params.max_sleep_ns, keys.max_sleep);
    params.upstream_threshold = keys.upstream_threshold.unwrap_or(params.upstream_threshold);
    if params != params.clamped() {
        let what = "stay_awake is at most 1ms, and max_sleep is 1us to 1ms".into();
        return Err(LowerError::Key { place: "[idle]".into(), what });
    }
    Ok(params)
}

fn overlay_config(
    file: &File,
    version: u64,
    caps: &[Option<PortCaps>],
    names: &mut Names,
) -> Result<overlay::Config, LowerError> {
    let mut config = overlay::Config { epoch: version as u32, ..overlay::Config::default() };
    for underlay in &file.underlay {
        config.underlays.push(lower_underlay(file, underlay, caps)?);
    }
    for tenant in &file.tenant {
        config.tenants.push(lower_tenant(file, tenant, names)?);
    }
    for (number, volume) in file.volume.iter().enumerate() {
        let place = format!("volume \"{}\" (number {})", volume.name, number + 1);
        let tenant = tenant_id(file, names, &place, &volume.tenant)?;
        let id = VolumeId(names.volumes.of(&volume.name));
        let (server, port) = (volume.server.ip(), volume.server.port());
        config.volumes.push(overlay::Volume { id, tenant, server, port });
    }
    for (number, rule) in file.rule.iter().enumerate() {
        config.rules.push(lower_rule(file, &rule_place(number, &rule.to), rule, names)?);
    }
    endpoints_fit_sockets(file, &config)?;
    Ok(config)
}

fn lower_underlay(
    file: &File,
    keys: &super::file::Underlay,
    caps: &[Option<PortCaps>],
) -> Result<overlay::Underlay, LowerError> {
    let place = format!("underlay \"{}\"", keys.port);
    let port = port_id(file, &place, &keys.port)?;
    let caps = caps.get(usize::from(port.0)).copied().flatten();
    let super::file::Port { driver, listen, .. } = file.port[usize::from(port.0)];
    let mut lowered = match driver {
        Driver::Udp => overlay::Underlay::datagram(port),
        _ => overlay::Underlay::ethernet(port, Mac([0; 6])),
    };
    lowered.mac = match (&keys.mac, caps.and_then(|caps| caps.mac)) {
        (Some(text), _) => mac(&place, text)?,
        (None, Some(mac)) => Mac(mac),
        // Not open yet: the snapshot is built anew when it is.
        (None, None) => Mac(LATER_MAC),
    };
    for text in &keys.addresses {
        let address = prefix(&place, text)?;
        fits_socket(|| place.clone(), "address", address.address, listen)?;
        match address {
            Prefix { address: IpAddr::V4(address), bits } if lowered.ipv4.is_none() => {
                lowered.ipv4 = Some(Prefix { address, bits });
            }
            Prefix { address: IpAddr::V6(address), bits } if lowered.ipv6.is_none() => {
                lowered.ipv6 = Some(Prefix { address, bits });
            }
            _ => {
                let what = "addresses holds more than one of a family; one endpoint per family is possible";
                return Err(LowerError::Key { place, what: what.into() });
            }
        }
    }
    for gateway in &keys.gateways {
        match gateway {
            IpAddr::V4(address) => lowered.gateway_ipv4 = Some(*address),
            IpAddr::V6(address) => lowered.gateway_ipv6 = Some(*address),
        }
    }
    let interface_mtu = caps.map(|caps| match caps.kind {
        PortKind::Ethernet => caps.mtu_bytes,
        // The datagram's payload: what the tables want is the packet around it.
        PortKind::Datagram => caps.mtu_bytes + if lowered.ipv4.is_some() { 28 } else { 48 },
    });
    let interface_mtu = interface_mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
    lowered.mtu_bytes = keys.mtu.or(interface_mtu).unwrap_or(lowered.mtu_bytes);
    lowered.vxlan_port = keys.vxlan_port.unwrap_or(lowered.vxlan_port);
    lowered.geneve_port = keys.geneve_port.unwrap_or(lowered.geneve_port);
    lowered.ttl = keys.ttl.unwrap_or(lowered.ttl);
    lowered.df = keys.df.unwrap_or(lowered.df);
    lowered.outer_checksum = keys.outer_checksum.unwrap_or(lowered.ipv6.is_some());
    lowered.dscp = match &keys.dscp {
        None => overlay::Dscp::Copy,
        Some(DscpKey::Word(word)) if word == "copy" => overlay::Dscp::Copy,
        Some(DscpKey::Fixed(value)) if *value < 64 => overlay::Dscp::Fixed(*value),
        Some(_) => {
            return Err(LowerError::Key { place, what: "dscp is \"copy\" or 0 to 63".into() });
        }
    };
    Ok(lowered)
}

/// A socket carries one family: an address of the other one would promise endpoints that it cannot reach.
pub(super) fn fits_socket(
    place: impl FnOnce() -> String,
    key: &str,
    address: IpAddr,
    listen: Option<SocketAddr>,
) -> Result<(), LowerError> {
    let Some(listen) = listen.filter(|listen| listen.is_ipv4() != address.is_ipv4()) else { return Ok(()) };
    let (ours, other) = if listen.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    let what = format!(
        "{key} {address} is not reached by listen = \"{listen}\", a socket for {ours} alone; add a second udp port \
         that listens on an {other} address, as an [[underlay]] of its own, for the tenants with such endpoints"
    );
    Err(LowerError::Key { place: place(), what })
}

/// Every tunnel endpoint behind a socket is of the socket's family.
fn endpoints_fit_sockets(file: &File, config: &overlay::Config) -> Result<(), LowerError> {
    let listen = |underlay: PortId| file.port.get(usize::from(underlay.0)).and_then(|port| port.listen);
    let sockets: HashMap<u16, Option<SocketAddr>> =
        config.tenants.iter().map(|tenant| (tenant.id.0, listen(tenant.underlay))).collect();
    for (keys, tenant) in file.tenant.iter().zip(&config.tenants) {
        for remote in &tenant.remotes {
            let place = || format!("tenant \"{}\"", keys.name);
            fits_socket(place, "vtep", remote.vtep.ip, listen(tenant.underlay))?;
        }
    }
    for (number, (keys, rule)) in file.rule.iter().zip(&config.rules).enumerate() {
        if let overlay::Action::Forward { vtep, .. } = rule.action {
            let place = || rule_place(number, &keys.to);
            fits_socket(place, "vtep", vtep.ip, sockets.get(&rule.tenant.0).copied().flatten())?;
        }
    }
    Ok(())
}

/// Which rule is meant.
pub(super) fn rule_place(number: usize, to: &str) -> String {
    format!("rule {} (to \"{to}\")", number + 1)
}

/// Stands in for an interface's address until the interface is there; locally administered, sent by nobody.
const LATER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0];

fn lower_tenant(
    file: &File,
    keys: &super::file::Tenant,
    names: &mut Names,
) -> Result<overlay::Tenant, LowerError> {
    let place = format!("tenant \"{}\"", keys.name);
    let underlay = match (&keys.underlay, file.underlay.first()) {
        (Some(name), _) => port_id(file, &place, name)?,
        (None, Some(first)) => port_id(file, &place, &first.port)?,
        // Without any underlay a tenant may still join its attachments on this node.
        (None, None) => PortId(u16::MAX),
    };
    let mut attachments = Vec::with_capacity(keys.attachments.len());
    for attachment in &keys.attachments {
        let port = port_id(file, &place, &attachment.port)?;
        let mut sources = Vec::with_capacity(attachment.sources.len());
        for source in &attachment.sources {
            let mac = source.mac.as_deref().map(|text| mac(&place, text)).transpose()?;
            sources.push(overlay::Source { ip: prefix(&place, &source.ip)?, mac });
        }
        let vlan = match attachment.vlan {
            None => None,
            Some(number) => {
                Some(VlanId::new(number).filter(|_| (1..=4094).contains(&number)).ok_or_else(|| {
                    LowerError::Key {
                        place: place.clone(),
                        what: format!("vlan = {number}; it is 1 to 4094"),
                    }
                })?)
            }
        };
        attachments.push(overlay::Attachment { port, vlan, sources });
    }
    let mut remotes = Vec::with_capacity(keys.remotes.len());
    for remote in &keys.remotes {
        let mac = remote.mac.as_deref().map(|text| mac(&place, text)).transpose()?;
        let (ip, vtep) = (prefix(&place, &remote.ip)?, vtep(&place, &remote.vtep)?);
        remotes.push(overlay::Remote { ip, mac, vtep });
    }
    let encapsulation = match keys.encapsulation {
        EncapsulationKey::Vxlan => overlay::Encapsulation::Vxlan,
        EncapsulationKey::Geneve => overlay::Encapsulation::Geneve,
    };
    let vni = vni(&place, keys.vni)?;
    let number = names.tenants.of(&keys.name);
    let id = TenantId(u16::try_from(number).map_err(|_| LowerError::Key {
        place,
        what: "there are too many tenants; split them over nodes".into(),
    })?);
    Ok(overlay::Tenant { id, vni, encapsulation, underlay, attachments, remotes })
}

pub(super) fn lower_rule(
    file: &File,
    place: &str,
    keys: &super::file::Rule,
    names: &mut Names,
) -> Result<overlay::Rule, LowerError> {
    let destination = match mac(place, &keys.to) {
        Ok(mac) => overlay::Destination::Mac(mac),
        Err(_) => overlay::Destination::Ip(prefix(place, &keys.to)?),
    };
    let action = match (keys.action, &keys.vtep) {
        (Action::Drop, None) => overlay::Action::Drop,
        (Action::Trap, None) => overlay::Action::Trap,
        (Action::Forward, Some(text)) => {
            let volume = match &keys.volume {
                Some(name) => Some(VolumeId(names.volumes.get(name).ok_or_else(|| {
                    unknown(place, "volume", name, file.volume.iter().map(|volume| &volume.name))
                })?)),
                None => None,
            };
            overlay::Action::Forward { volume, vtep: vtep(place, text)? }
        }
        (Action::Forward, None) => {
            return Err(LowerError::Key {
                place: place.to_owned(),
                what: "action = \"forward\" needs a vtep".into(),
            });
        }
        (_, Some(_)) => {
            return Err(LowerError::Key {
                place: place.to_owned(),
                what: "only action = \"forward\" takes a vtep".into(),
            });
        }
    };
    Ok(overlay::Rule {
        tenant: tenant_id(file, names, place, &keys.tenant)?,
        destination,
        transport: keys.protocol.map(|protocol| match protocol {
            Protocol::Tcp => overlay::Transport::Tcp,
            Protocol::Udp => overlay::Transport::Udp,
        }),
        destination_port: keys.port,
        source_port: keys.source_port,
        action,
    })
}

fn tenant_id(file: &File, names: &mut Names, place: &str, name: &str) -> Result<TenantId, LowerError> {
    let number = names.tenants.get(name);
    number
        .map(|number| TenantId(number as u16))
        .ok_or_else(|| unknown(place, "tenant", name, file.tenant.iter().map(|tenant| &tenant.name)))
}

/// The number of a port: its place in the file.
pub(super) fn port_id(file: &File, place: &str, name: &str) -> Result<PortId, LowerError> {
    let found = file.port.iter().position(|port| port.name == name);
    found
        .map(|index| PortId(index as u16))
        .ok_or_else(|| unknown(place, "port", name, file.port.iter().map(|port| &port.name)))
}

/// The error for a name that nothing has, with the nearest one that something has.
pub(super) fn unknown<'a>(
    place: &str,
    kind: &'static str,
    name: &str,
    known: impl Iterator<Item = &'a String>,
) -> LowerError {
    let hint = super::nearest(name, known.map(String::as_str))
        .map_or(String::new(), |near| format!("; did you mean \"{near}\"?"));
    LowerError::Unknown { place: place.to_owned(), kind, name: name.to_owned(), hint }
}

pub(super) fn unique<'a>(
    kind: &'static str,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), LowerError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(LowerError::Twice { kind, name: name.clone() });
        }
    }
    Ok(())
}

fn text_error(place: &str, text: &str, expected: &'static str) -> LowerError {
    LowerError::Text { place: place.to_owned(), text: text.to_owned(), expected }
}

pub(super) fn mac(place: &str, text: &str) -> Result<Mac, LowerError> {
    let wrong = || text_error(place, text, "a MAC address such as \"02:00:00:00:00:01\"");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() { Err(wrong()) } else { Ok(Mac(mac)) }
}

pub(super) fn prefix(place: &str, text: &str) -> Result<Prefix<IpAddr>, LowerError> {
    let wrong = || text_error(place, text, "an address or prefix such as \"10.0.0.1\" or \"2001:db8::/64\"");
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let Some(bits) = bits else { return Ok(Prefix::host(address)) };
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    let most = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
    if u32::from(bits) > most { Err(wrong()) } else { Ok(Prefix { address, bits }) }
}

fn vtep(place: &str, text: &str) -> Result<Vtep, LowerError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Vtep { ip, port: None });
    }
    text.parse::<SocketAddr>().map(|both| Vtep { ip: both.ip(), port: Some(both.port()) }).map_err(|_| {
        text_error(place, text, "a tunnel endpoint such as \"192.0.2.2\" or \"[2001:db8::2]:4790\"")
    })
}

fn vni(place: &str, number: u32) -> Result<Vni, LowerError> {
    Vni::new(number).ok_or_else(|| LowerError::Key {
        place: place.to_owned(),
        what: format!("vni = {number} has more than 24 bits; the largest is 16777215"),
    })
}
