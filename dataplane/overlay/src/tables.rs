//! The immutable tables that every packet is looked up in.
//!
//! ```text
//! tenant's frame:  (port, VLAN) -> attachment -> tenant
//!                  (tenant, source address)        -> endpoint: may it send here?
//!                  (tenant, destination, ports)    -> route: what to do, next hop, volume
//! tunnelled frame: (underlay, outer source, VNI)   -> peer: whose network, from which next hop
//!                  (tenant, inner source)          -> endpoint: is it behind that next hop?
//!                  (tenant, inner destination)     -> route: which attachment
//! both:            (tenant, server, port)          -> volume
//! ```
//!
//! Each arrow with a tuple of fields is one hash probe of one cache line (decision D3); routes and endpoints
//! that are not single addresses take one probe per mask tuple. Rules and endpoints are compiled into the
//! same routes, so there is one lookup per destination and not two.
//!
//! Invariants: every number in an entry is in range (built whole, by [`Tables::build`] only); every key
//! holds its tenant, so no lookup can cross tenants; numbers of next hops and attachments mean the same
//! thing from one build to the next.

mod build;
mod endpoints;
mod error;
mod hash;
pub(crate) mod key;
pub(crate) mod next_hop;
mod numbers;
mod routes;

use std::collections::HashMap;
use std::net::SocketAddr;

use wire::{Mac, VlanId};

pub use error::TableError;
pub(crate) use hash::{HashTable, Key, Slot};
use key::{Kind, Tuple};
pub(crate) use next_hop::{Local, NextHop};
use numbers::Numbers;

use crate::config::{AttachmentId, Config, NextHopId, PortId};

/// Tenants, at most.
pub const TENANTS_MAX: usize = 16_384;
/// Configured rules, at most.
pub const RULES_MAX: usize = 100_000;
/// Attachments' sources and remotes together, at most.
pub const ENDPOINTS_MAX: usize = 131_072;
/// Attachments, at most.
pub const ATTACHMENTS_MAX: usize = 65_536;
/// Next hops, at most.
pub const NEXT_HOPS_MAX: usize = 16_384;
/// Volumes, at most.
pub const VOLUMES_MAX: usize = 1 << 20;
/// Mask tuples (kinds of match that are not a single address) per tenant, at most (decision D3).
pub const MASK_TUPLES_MAX: usize = 8;

/// Everything that a packet is looked up in. Built whole, never changed, shared by pointer.
#[derive(Debug, Default)]
pub struct Tables {
    ports: Vec<PortSlot>,
    /// Attachment numbers by port and VLAN; see [`PortSlot`].
    by_vlan: Vec<u32>,
    attachments: Vec<AttachmentInfo>,
    tenants: Vec<TenantInfo>,
    tuples: Vec<Tuple>,
    pub(crate) routes: HashTable<Route>,
    pub(crate) endpoints: HashTable<Endpoint>,
    pub(crate) volumes: HashTable<VolumeSlot>,
    pub(crate) peers: HashTable<Peer>,
    next_hops: Vec<NextHop>,
    locals: Vec<Local>,
    vnis: HashMap<u32, u16>,
    /// Every next hop and attachment that ever had a number, for the next build.
    next_hop_ids: Numbers<build::NextHopKey>,
    attachment_ids: Numbers<(u16, u16)>,
    rules: usize,
}

/// What a port number stands for.
#[derive(Clone, Copy, Debug, Default)]
enum PortSlot {
    #[default]
    Unknown,
    /// `by_vlan[base]` holds the untagged attachment, with `vlans` also `by_vlan[base + VLAN]`.
    Tenant { base: u32, vlans: bool },
    /// Index into `locals`.
    Underlay(u16),
}

/// No attachment.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachmentInfo {
    pub(crate) port: u16,
    /// 0 = untagged.
    pub(crate) vlan: u16,
    pub(crate) tenant: u16,
    /// Some source has no MAC: any unicast MAC may send.
    pub(crate) any_mac: bool,
    /// False for a number kept only so that it is not given out again.
    live: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Range {
    start: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct TenantInfo {
    pub(crate) vni: u32,
    pub(crate) live: bool,
    /// Some rule names transport fields, or there are volumes: a fragment hides what decides.
    pub(crate) needs_ports: bool,
    /// Volumes whose server is attached here.
    pub(crate) volumes_local: bool,
    /// Volumes whose server is elsewhere.
    pub(crate) volumes_remote: bool,
    routes: [Range; 2],
    endpoints: [Range; 2],
}

impl TenantInfo {
    /// Some volume's server is known by address: who pays is looked up for each packet.
    #[inline(always)]
    pub(crate) fn has_volumes(&self) -> bool {
        self.volumes_local || self.volumes_remote
    }
}

/// One tenant's part of the tables, looked up once for a run of frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TenantView<'a> {
    pub(crate) id: u16,
    pub(crate) info: &'a TenantInfo,
    /// Mask tuples, most specific first; by family.
    routes: [&'a [Tuple]; 2],
    endpoints: [&'a [Tuple]; 2],
}

impl<'a> TenantView<'a> {
    /// The tuples of the tenant's routes.
    #[inline(always)]
    pub(crate) fn routes(&self, v6: bool) -> &'a [Tuple] {
        self.routes[usize::from(v6)]
    }

    /// The tuples of the tenant's endpoints.
    #[inline(always)]
    pub(crate) fn endpoints(&self, v6: bool) -> &'a [Tuple] {
        self.endpoints[usize::from(v6)]
    }
}

/// What a route does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RouteKind {
    #[default]
    Drop,
    Trap,
    Forward,
    Deliver,
}

/// A rule or an endpoint, compiled: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Route {
    pub(crate) key: Key,
    pub(crate) vni: u32,
    pub(crate) volume: u32,
    /// Position in the configuration, or `Outcomes::NO_RULE`.
    pub(crate) rule: u32,
    pub(crate) attachment: u32,
    pub(crate) next_hop: u16,
    /// Where the frame leaves: the underlay's port or the tenant's.
    pub(crate) port: u16,
    /// Tag to push on delivery; 0 = none.
    pub(crate) vlan: u16,
    /// Where a delivery must be addressed to; zero = any.
    pub(crate) mac: Mac,
    pub(crate) kind: RouteKind,
    /// A MAC entry that comes from an endpoint: for link-local and ARP traffic only.
    pub(crate) link_only: bool,
}

const _: () = assert!(size_of::<Route>() == 64);

impl Slot for Route {
    const EMPTY: Route = Route {
        key: Key { hi: 0, lo: 0, tag: 0 },
        vni: 0,
        volume: frame::Meta::NO_VOLUME,
        rule: crate::Outcomes::NO_RULE,
        attachment: 0,
        next_hop: 0,
        port: 0,
        vlan: 0,
        mac: Mac::ZERO,
        kind: RouteKind::Drop,
        link_only: false,
    };
    #[inline(always)]
    fn key(&self) -> &Key {
        &self.key
    }
}

/// Where an address lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Local(u32),
    Remote(u16),
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Endpoint {
    pub(crate) key: Key,
    /// Zero = any or unknown.
    pub(crate) mac: Mac,
    pub(crate) place: Place,
}

impl Slot for Endpoint {
    const EMPTY: Endpoint =
        Endpoint { key: Key { hi: 0, lo: 0, tag: 0 }, mac: Mac::ZERO, place: Place::Local(NONE) };
    #[inline(always)]
    fn key(&self) -> &Key {
        &self.key
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct VolumeSlot {
    key: Key,
    volume: u32,
}

impl Slot for VolumeSlot {
    const EMPTY: VolumeSlot =
        VolumeSlot { key: Key { hi: 0, lo: 0, tag: 0 }, volume: frame::Meta::NO_VOLUME };
    #[inline(always)]
    fn key(&self) -> &Key {
        &self.key
    }
}

/// Who may send frames of a network.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub(crate) struct Peer {
    pub(crate) key: Key,
    pub(crate) tenant: u16,
    pub(crate) next_hop: u16,
}

impl Slot for Peer {
    const EMPTY: Peer = Peer { key: Key { hi: 0, lo: 0, tag: 0 }, tenant: 0, next_hop: 0 };
    #[inline(always)]
    fn key(&self) -> &Key {
        &self.key
    }
}

impl Tables {
    /// Checks `config` whole and builds its tables. With the tables that it replaces as `previous`, next
    /// hops and attachments keep their numbers and those that are gone leave theirs unused as long as
    /// others are free, so that frames in flight are never sent to the wrong place.
    pub fn build(config: &Config, previous: Option<&Tables>) -> Result<Tables, TableError> {
        build::build(config, previous)
    }

    /// How many configured rules there are; rule numbers in [`crate::Outcomes::rules`] are positions in
    /// [`Config::rules`].
    pub fn rule_count(&self) -> usize {
        self.rules
    }

    /// How many attachment numbers there are, for arrays of counters.
    pub fn attachment_count(&self) -> usize {
        self.attachments.len()
    }

    /// The port and VLAN of an attachment.
    pub fn attachment(&self, id: AttachmentId) -> Option<(PortId, Option<VlanId>)> {
        let info = self.attachments.get(id.0 as usize).filter(|info| info.live)?;
        Some((PortId(info.port), VlanId::new(info.vlan)))
    }

    /// How many next hop numbers there are.
    pub fn next_hop_count(&self) -> usize {
        self.next_hops.len()
    }

    /// The port and the peer's address of a next hop.
    pub fn next_hop(&self, id: NextHopId) -> Option<(PortId, SocketAddr)> {
        let hop = self.next_hops.get(usize::from(id.0)).filter(|hop| hop.live)?;
        Some((PortId(hop.port), hop.peer))
    }

    /// The peer table of a datagram underlay, for the port's `set_peers`: the address at index n belongs to
    /// next hop n; numbers of other underlays hold the unspecified address.
    pub fn peers(&self, port: PortId) -> Vec<SocketAddr> {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        self.next_hops
            .iter()
            .map(|hop| if hop.live && hop.port == port.0 { hop.peer } else { nobody })
            .collect()
    }

    /// True for the port of an underlay.
    pub fn is_underlay(&self, port: PortId) -> bool {
        self.local(port.0).is_some()
    }

    #[inline(always)]
    pub(crate) fn hop(&self, next_hop: u16) -> Option<&NextHop> {
        self.next_hops.get(usize::from(next_hop)).filter(|hop| hop.live)
    }

    /// Asks for the cache line of a next hop.
    #[inline(always)]
    pub(crate) fn prefetch_hop(&self, next_hop: u16) {
        if let Some(hop) = self.next_hops.get(usize::from(next_hop)) {
            frame::prefetch(hop);
        }
    }

    pub(crate) fn hops(&self) -> &[NextHop] {
        &self.next_hops
    }

    /// The local tunnel endpoint on a port.
    #[inline(always)]
    pub(crate) fn local(&self, port: u16) -> Option<&Local> {
        match self.ports.get(usize::from(port))? {
            PortSlot::Underlay(index) => self.locals.get(usize::from(*index)),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn attached(&self, port: u16, vlan: Option<VlanId>) -> Option<(u32, &AttachmentInfo)> {
        let PortSlot::Tenant { base, vlans } = *self.ports.get(usize::from(port))? else { return None };
        let at = match vlan {
            None => base,
            Some(id) if vlans => base + u32::from(id.value()),
            Some(_) => return None,
        };
        let id = *self.by_vlan.get(at as usize)?;
        Some((id, self.attachments.get(id as usize)?))
    }

    #[inline(always)]
    pub(crate) fn attachment_info(&self, id: u32) -> Option<&AttachmentInfo> {
        self.attachments.get(id as usize).filter(|info| info.live)
    }

    pub(crate) fn view(&self, tenant: u16) -> TenantView<'_> {
        let info = &self.tenants[usize::from(tenant)];
        TenantView {
            id: tenant,
            info,
            routes: info.routes.map(|range| self.range(range)),
            endpoints: info.endpoints.map(|range| self.range(range)),
        }
    }

    pub(crate) fn tenant_of_vni(&self, vni: u32) -> Option<u16> {
        self.vnis.get(&vni).copied()
    }

    fn range(&self, range: Range) -> &[Tuple] {
        self.tuples.get(range.start as usize..(range.start + range.len) as usize).unwrap_or(&[])
    }

    /// The endpoint that holds an address: the longest prefix.
    #[inline(always)]
    pub(crate) fn endpoint(&self, view: &TenantView<'_>, v6: bool, address: u128) -> Option<&Endpoint> {
        let packet = key::address_key(view.id, address);
        view.endpoints(v6).iter().find_map(|tuple| self.endpoints.find(&tuple.key(&packet)))
    }

    /// Asks for the cache line of the most specific endpoint entry.
    #[inline(always)]
    pub(crate) fn prefetch_endpoint(&self, view: &TenantView<'_>, v6: bool, address: u128) {
        if let [first, ..] = view.endpoints(v6) {
            let key = first.key(&key::address_key(view.id, address));
            self.endpoints.prefetch(self.endpoints.hash(&key));
        }
    }

    /// The volume whose server is at an address and port.
    #[inline(always)]
    pub(crate) fn volume(&self, tenant: u16, v6: bool, server: u128, port: u16) -> Option<u32> {
        self.volumes.find(&key::volume_key(tenant, v6, server, port)).map(|slot| slot.volume)
    }

    /// The route of a MAC address.
    pub(crate) fn mac_route(&self, tenant: u16, mac: Mac) -> Option<&Route> {
        self.routes.find(&key::mac_key(tenant, mac))
    }

    /// Where the station with a MAC address is.
    pub(crate) fn mac_place(&self, tenant: u16, mac: Mac) -> Option<Place> {
        self.endpoints.find(&key::mac_key(tenant, mac)).map(|endpoint| endpoint.place)
    }

    /// The route of an address without regard to ports: for packets that show none.
    pub(crate) fn address_route(&self, view: &TenantView<'_>, v6: bool, address: u128) -> Option<&Route> {
        let packet = key::address_key(view.id, address);
        let portless = view.routes(v6).iter().filter(|tuple| tuple.fields() == 0);
        portless.map(|tuple| tuple.key(&packet)).find_map(|key| self.routes.find(&key))
    }
}

pub(crate) fn kind_of(v6: bool) -> Kind {
    if v6 { Kind::V6 } else { Kind::V4 }
}
