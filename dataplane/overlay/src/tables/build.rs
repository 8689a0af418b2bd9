//! From a [`Config`] to [`Tables`]: underlays, then tenants with their endpoints, then rules, then volumes.
//!
//! Everything is collected in ordinary maps, where contradictions show, and put into the hash tables at the
//! end. Building 100,000 rules takes tens of milliseconds, off the packet path.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::key::{Fields, Kind, Tuple, address_mask, number, peer_key};
use super::{
    AttachmentInfo, Endpoint, HashTable, Key, Local, NextHop, Peer, PortSlot, Range, Route, TableError,
    Tables, TenantInfo, VolumeSlot,
};
use crate::config::{
    Action, Config, Encapsulation, PortId, Prefix, Tenant, TenantId, Underlay, UnderlayKind, VolumeId, Vtep,
};

/// What tells next hops apart: underlay port, peer, format.
pub(crate) type NextHopKey = (u16, SocketAddr, Encapsulation);

/// Smallest MTU of an underlay: what IPv6 demands of every link (RFC 8200, clause 5).
const MTU_BYTES_MIN: u16 = 1280;

pub(super) fn build(config: &Config, previous: Option<&Tables>) -> Result<Tables, TableError> {
    let mut builder = Builder::new(config, previous)?;
    for underlay in &config.underlays {
        builder.underlay(underlay)?;
    }
    for tenant in &config.tenants {
        builder.tenant(tenant)?;
    }
    builder.volumes()?;
    builder.rules()?;
    Ok(builder.finish())
}

pub(super) struct Builder<'a> {
    pub(super) config: &'a Config,
    pub(super) tables: Tables,
    pub(super) routes: HashMap<Key, Route>,
    pub(super) endpoints: HashMap<Key, Endpoint>,
    pub(super) volumes: HashMap<Key, VolumeSlot>,
    pub(super) peers: HashMap<Key, Peer>,
    /// Mask tuples in use, by tenant: (v6, prefix bits, fields).
    pub(super) route_tuples: HashMap<TenantId, BTreeSet<(bool, u8, Fields)>>,
    pub(super) endpoint_bits: HashMap<TenantId, BTreeSet<(bool, u8)>>,
    pub(super) by_id: HashMap<TenantId, &'a Tenant>,
    pub(super) volume_owners: HashMap<VolumeId, TenantId>,
    pub(super) attachments_wanted: HashSet<(u16, u16)>,
    wanted: HashSet<NextHopKey>,
}

impl<'a> Builder<'a> {
    fn new(config: &'a Config, previous: Option<&Tables>) -> Result<Builder<'a>, TableError> {
        let endpoints = |tenant: &Tenant| {
            tenant.remotes.len() + tenant.attachments.iter().map(|at| at.sources.len()).sum::<usize>()
        };
        let attachments = config.tenants.iter().map(|tenant| tenant.attachments.len()).sum();
        limit("tenants", config.tenants.len(), super::TENANTS_MAX)?;
        limit("rules", config.rules.len(), super::RULES_MAX)?;
        limit("volumes", config.volumes.len(), super::VOLUMES_MAX)?;
        limit("attachments", attachments, super::ATTACHMENTS_MAX)?;
        limit("endpoints", config.tenants.iter().map(endpoints).sum(), super::ENDPOINTS_MAX)?;
        let mut tables = Tables { rules: config.rules.len(), ..Tables::default() };
        if let Some(previous) = previous {
            tables.next_hop_ids.clone_from(&previous.next_hop_ids);
            tables.attachment_ids.clone_from(&previous.attachment_ids);
            tables.next_hops = vec![NextHop::dead(); previous.next_hops.len()];
            let dead = previous.attachments.iter().map(|info| AttachmentInfo { live: false, ..*info });
            tables.attachments = dead.collect();
        }
        Ok(Builder {
            config,
            tables,
            routes: HashMap::new(),
            endpoints: HashMap::new(),
            volumes: HashMap::new(),
            peers: HashMap::new(),
            route_tuples: HashMap::new(),
            endpoint_bits: HashMap::new(),
            by_id: HashMap::new(),
            volume_owners: HashMap::new(),
            attachments_wanted: wanted_attachments(config),
            wanted: wanted_next_hops(config),
        })
    }

    fn underlay(&mut self, underlay: &Underlay) -> Result<(), TableError> {
        check_underlay(underlay)?;
        let index = self.tables.locals.len() as u16;
        self.tables.locals.push(Local::new(underlay));
        match self.port_slot(underlay.port) {
            slot @ PortSlot::Unknown => *slot = PortSlot::Underlay(index),
            _ => return Err(TableError::DuplicatePort { port: underlay.port }),
        }
        Ok(())
    }

    pub(super) fn port_slot(&mut self, port: PortId) -> &mut PortSlot {
        let at = usize::from(port.0);
        if self.tables.ports.len() <= at {
            self.tables.ports.resize(at + 1, PortSlot::Unknown);
        }
        &mut self.tables.ports[at]
    }

    fn tenant(&mut self, tenant: &'a Tenant) -> Result<(), TableError> {
        let id = tenant.id;
        if usize::from(id.0) >= super::TENANTS_MAX {
            return Err(TableError::TenantNumber { id });
        }
        if self.by_id.insert(id, tenant).is_some() {
            return Err(TableError::DuplicateTenant { id });
        }
        if let Some(first) = self.tables.vnis.insert(tenant.vni.value(), id.0) {
            return Err(TableError::DuplicateVni { vni: tenant.vni, first: TenantId(first), second: id });
        }
        underlay_of(self.config, tenant)?;
        let at = usize::from(id.0);
        if self.tables.tenants.len() <= at {
            self.tables.tenants.resize(at + 1, TenantInfo::default());
        }
        self.tables.tenants[at] = TenantInfo { vni: tenant.vni.value(), live: true, ..TenantInfo::default() };
        for attachment in &tenant.attachments {
            self.attachment(tenant, attachment)?;
        }
        for remote in &tenant.remotes {
            self.remote(tenant, remote)?;
        }
        Ok(())
    }

    /// The number of the next hop to `vtep`, new or known; from now on it may send for the tenant.
    pub(super) fn next_hop(&mut self, tenant: &Tenant, vtep: Vtep) -> Result<u16, TableError> {
        let underlay = underlay_of(self.config, tenant)?;
        let key @ (_, peer, _) = next_hop_key(underlay, tenant, vtep);
        let id = self.next_hop_id(key)?;
        if !self.tables.next_hops[usize::from(id)].live {
            let neighbour = neighbour(underlay, vtep.ip)?;
            let hop = NextHop::new(underlay, tenant.encapsulation, peer, neighbour, self.config.epoch);
            let hop = hop.ok_or(TableError::NoLocalAddress { vtep: vtep.ip, port: underlay.port })?;
            self.tables.next_hops[usize::from(id)] = hop;
        }
        self.peer(tenant, underlay, vtep.ip, id)?;
        Ok(id)
    }

    fn next_hop_id(&mut self, key: NextHopKey) -> Result<u16, TableError> {
        let (max, wanted) = (super::NEXT_HOPS_MAX, &self.wanted);
        let id = self.tables.next_hop_ids.number(key, max, |key| wanted.contains(key));
        let id = id.ok_or(TableError::Limit { what: "next hops", count: max + 1, max })?;
        if self.tables.next_hops.len() <= id as usize {
            self.tables.next_hops.resize(id as usize + 1, NextHop::dead());
        }
        Ok(id as u16)
    }

    /// Allows frames of the tenant's network from the peer behind next hop `id`.
    fn peer(
        &mut self,
        tenant: &Tenant,
        underlay: &Underlay,
        vtep: IpAddr,
        id: u16,
    ) -> Result<(), TableError> {
        let (geneve, vni) = (tenant.encapsulation == Encapsulation::Geneve, tenant.vni.value());
        let key = match underlay.kind {
            UnderlayKind::Ethernet => peer_key(Kind::of(vtep), number(vtep), underlay.port.0, geneve, vni),
            UnderlayKind::Datagram => {
                self.datagram_peer(underlay, id)?;
                peer_key(Kind::Mac, u128::from(id), underlay.port.0, geneve, vni)
            }
        };
        match self.peers.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Peer { key, tenant: tenant.id.0, next_hop: id });
                Ok(())
            }
            // A network identifier belongs to one tenant, so an equal key means an equal tenant.
            Entry::Occupied(entry) if entry.get().next_hop == id => Ok(()),
            Entry::Occupied(_) => Err(TableError::VtepAmbiguous { vtep }),
        }
    }

    /// A socket tells senders apart by their address alone, so an address may not stand for two formats.
    fn datagram_peer(&self, underlay: &Underlay, id: u16) -> Result<(), TableError> {
        let hops = &self.tables.next_hops;
        let own = &hops[usize::from(id)];
        let twin = hops.iter().enumerate().any(|(other, hop)| {
            hop.live && hop.port == underlay.port.0 && hop.peer == own.peer && other != usize::from(id)
        });
        if twin { Err(TableError::VtepAmbiguous { vtep: own.peer.ip() }) } else { Ok(()) }
    }

    fn finish(mut self) -> Tables {
        for tenant in &self.config.tenants {
            let routes = self.route_tuples.remove(&tenant.id).unwrap_or_default();
            let bits = self.endpoint_bits.remove(&tenant.id).unwrap_or_default();
            let tables = &mut self.tables;
            let info = &mut tables.tenants[usize::from(tenant.id.0)];
            info.needs_ports = info.volumes_local
                || info.volumes_remote
                || routes.iter().any(|(_, _, fields)| *fields != Fields::default());
            for v6 in [false, true] {
                let kind = super::kind_of(v6);
                // Most specific first: more bits, then more telling fields.
                let own = routes.iter().rev().filter(|(family, ..)| *family == v6);
                info.routes[usize::from(v6)] =
                    append(&mut tables.tuples, own.map(|(_, bits, fields)| Tuple::new(kind, *bits, *fields)));
                let own = bits.iter().rev().filter(|(family, _)| *family == v6);
                let plain = Fields::default();
                info.endpoints[usize::from(v6)] =
                    append(&mut tables.tuples, own.map(|(_, bits)| Tuple::new(kind, *bits, plain)));
            }
        }
        self.tables.routes = HashTable::new(self.routes.into_values());
        self.tables.endpoints = HashTable::new(self.endpoints.into_values());
        self.tables.volumes = HashTable::new(self.volumes.into_values());
        self.tables.peers = HashTable::new(self.peers.into_values());
        self.tables
    }
}

fn underlay_of<'a>(config: &'a Config, tenant: &Tenant) -> Result<&'a Underlay, TableError> {
    let port = tenant.underlay;
    let found = config.underlays.iter().find(|underlay| underlay.port == port);
    found.ok_or(TableError::UnknownUnderlay { tenant: tenant.id, port })
}

fn next_hop_key(underlay: &Underlay, tenant: &Tenant, vtep: Vtep) -> NextHopKey {
    let standard = match tenant.encapsulation {
        Encapsulation::Vxlan => underlay.vxlan_port,
        Encapsulation::Geneve => underlay.geneve_port,
    };
    let peer = SocketAddr::new(vtep.ip, vtep.port.unwrap_or(standard));
    (underlay.port.0, peer, tenant.encapsulation)
}

/// Every next hop that `config` names.
fn wanted_next_hops(config: &Config) -> HashSet<NextHopKey> {
    let by_id: HashMap<TenantId, &Tenant> = config.tenants.iter().map(|tenant| (tenant.id, tenant)).collect();
    let remotes =
        config.tenants.iter().flat_map(|tenant| tenant.remotes.iter().map(move |at| (tenant, at.vtep)));
    let rules = config.rules.iter().filter_map(|rule| match rule.action {
        Action::Forward { vtep, .. } => Some((*by_id.get(&rule.tenant)?, vtep)),
        _ => None,
    });
    let key = |(tenant, vtep)| Some(next_hop_key(underlay_of(config, tenant).ok()?, tenant, vtep));
    remotes.chain(rules).filter_map(key).collect()
}

/// Every (port, VLAN or 0) that `config` attaches.
fn wanted_attachments(config: &Config) -> HashSet<(u16, u16)> {
    let all = config.tenants.iter().flat_map(|tenant| &tenant.attachments);
    all.map(|at| (at.port.0, at.vlan.map_or(0, |vlan| vlan.value()))).collect()
}

fn append(tuples: &mut Vec<Tuple>, new: impl Iterator<Item = Tuple>) -> Range {
    let start = tuples.len() as u32;
    tuples.extend(new);
    Range { start, len: tuples.len() as u32 - start }
}

fn limit(what: &'static str, count: usize, max: usize) -> Result<(), TableError> {
    if count > max { Err(TableError::Limit { what, count, max }) } else { Ok(()) }
}

fn check_underlay(underlay: &Underlay) -> Result<(), TableError> {
    let refuse = |what| Err(TableError::Underlay { port: underlay.port, what });
    if let crate::config::Dscp::Fixed(64..) = underlay.dscp {
        return refuse("a DSCP is a number from 0 to 63");
    }
    if underlay.mtu_bytes < MTU_BYTES_MIN {
        return refuse("the MTU must be at least 1280 bytes; 1450 or more leaves room for tunnels");
    }
    if underlay.kind == UnderlayKind::Datagram {
        return Ok(());
    }
    if !underlay.mac.is_unicast() {
        return refuse("the MAC address must be that of one station; give the interface's own");
    }
    if underlay.ipv4.is_none() && underlay.ipv6.is_none() {
        return refuse("no tunnel endpoint address; give an IPv4 or an IPv6 address with its prefix");
    }
    if underlay.ipv4.is_some_and(|own| own.bits > 32) || underlay.ipv6.is_some_and(|own| own.bits > 128) {
        return refuse("a prefix has at most 32 bits (IPv4) or 128 (IPv6)");
    }
    if underlay.ttl == 0 {
        return refuse("a TTL of 0 goes nowhere; give 64");
    }
    if underlay.vxlan_port == underlay.geneve_port {
        return refuse("VXLAN and Geneve need different UDP ports, 4789 and 6081 by standard");
    }
    Ok(())
}

/// Who gets frames for `vtep`: the endpoint itself or a router.
fn neighbour(underlay: &Underlay, vtep: IpAddr) -> Result<IpAddr, TableError> {
    if underlay.kind == UnderlayKind::Datagram {
        return Ok(vtep);
    }
    let port = underlay.port;
    let (own, bits, gateway): (IpAddr, u8, Option<IpAddr>) = match vtep {
        IpAddr::V4(_) => {
            let own = underlay.ipv4.ok_or(TableError::NoLocalAddress { vtep, port })?;
            (own.address.into(), own.bits, underlay.gateway_ipv4.map(IpAddr::from))
        }
        IpAddr::V6(_) => {
            let own = underlay.ipv6.ok_or(TableError::NoLocalAddress { vtep, port })?;
            (own.address.into(), own.bits, underlay.gateway_ipv6.map(IpAddr::from))
        }
    };
    if own == vtep {
        return Err(TableError::VtepIsLocal { vtep });
    }
    if contains(Prefix { address: own, bits }, vtep) {
        return Ok(vtep);
    }
    gateway.ok_or(TableError::NoRoute { vtep, port })
}

/// True when `ip` lies in the network of `prefix`.
pub(super) fn contains(prefix: Prefix<IpAddr>, ip: IpAddr) -> bool {
    let (kind, other) = (Kind::of(prefix.address), Kind::of(ip));
    kind == other && (number(prefix.address) ^ number(ip)) & address_mask(kind, prefix.bits) == 0
}
