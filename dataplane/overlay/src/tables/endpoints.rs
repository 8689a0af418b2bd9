//! Attachments, their sources, and remotes: endpoints, and the routes that they imply.

use std::collections::hash_map::Entry;
use std::net::IpAddr;

use wire::Mac;

use super::build::Builder;
use super::key::{Fields, Kind, Match, address_mask, mac_key, number, prefix_key};
use super::{AttachmentInfo, Endpoint, NONE, Place, PortSlot, Route, RouteKind, Slot, TableError};
use crate::config::{Attachment, Prefix, Remote, Source, Tenant};

/// `by_vlan` entries of a port with VLANs: untagged and 1..=4094.
const VLAN_SLOTS: usize = 4095;

impl Builder<'_> {
    pub(super) fn attachment(&mut self, tenant: &Tenant, attachment: &Attachment) -> Result<(), TableError> {
        let vlan = attachment.vlan.map_or(0, |vlan| vlan.value());
        let max = super::ATTACHMENTS_MAX;
        let wanted = &self.attachments_wanted;
        let key = (attachment.port.0, vlan);
        let id = self.tables.attachment_ids.number(key, max, |key| wanted.contains(key));
        let id = id.ok_or(TableError::Limit { what: "attachments", count: max + 1, max })?;
        self.place_vlan(attachment, id)?;
        let info = AttachmentInfo {
            port: attachment.port.0,
            vlan,
            tenant: tenant.id.0,
            any_mac: attachment.sources.iter().any(|source| source.mac.is_none()),
            live: true,
        };
        let infos = &mut self.tables.attachments;
        if infos.len() <= id as usize {
            infos.resize(id as usize + 1, AttachmentInfo { live: false, ..info });
        }
        infos[id as usize] = info;
        attachment.sources.iter().try_for_each(|source| self.source(tenant, source, id, info))
    }

    /// Enters the attachment into its port's table by VLAN.
    fn place_vlan(&mut self, attachment: &Attachment, id: u32) -> Result<(), TableError> {
        let (port, end) = (attachment.port, self.tables.by_vlan.len());
        let slot = self.port_slot(port);
        let (base, vlans) = match *slot {
            PortSlot::Underlay(_) => return Err(TableError::DuplicatePort { port }),
            PortSlot::Tenant { base, vlans } => (base as usize, vlans),
            PortSlot::Unknown => (end, false),
        };
        // The first VLAN of a port moves it to a place with room for all; the old word stays unused.
        let grown = attachment.vlan.is_some() && !vlans;
        let new_base = if grown { end } else { base };
        *slot = PortSlot::Tenant { base: new_base as u32, vlans: vlans || grown };
        let by_vlan = &mut self.tables.by_vlan;
        let len = if grown { end + VLAN_SLOTS } else { end.max(base + 1) };
        by_vlan.resize(len, NONE);
        if grown && base < end {
            by_vlan[new_base] = by_vlan[base];
        }
        let entry = &mut by_vlan[new_base + attachment.vlan.map_or(0, |vlan| usize::from(vlan.value()))];
        if *entry != NONE {
            let vlan = attachment.vlan.map(|vlan| vlan.value());
            return Err(TableError::DuplicateAttachment { port, vlan });
        }
        *entry = id;
        Ok(())
    }

    fn source(
        &mut self,
        tenant: &Tenant,
        source: &Source,
        attachment: u32,
        info: AttachmentInfo,
    ) -> Result<(), TableError> {
        let mac = unicast(source.mac)?;
        let route = Route {
            kind: RouteKind::Deliver,
            vni: tenant.vni.value(),
            attachment,
            port: info.port,
            vlan: info.vlan,
            mac,
            ..Route::EMPTY
        };
        self.endpoint(tenant, source.ip, mac, Place::Local(attachment), route)
    }

    pub(super) fn remote(&mut self, tenant: &Tenant, remote: &Remote) -> Result<(), TableError> {
        let mac = unicast(remote.mac)?;
        let next_hop = self.next_hop(tenant, remote.vtep)?;
        let route = Route {
            kind: RouteKind::Forward,
            vni: tenant.vni.value(),
            next_hop,
            port: tenant.underlay.0,
            ..Route::EMPTY
        };
        self.endpoint(tenant, remote.ip, mac, Place::Remote(next_hop), route)
    }

    /// Enters an endpoint, its address route and, for its MAC, a route of link-local traffic.
    fn endpoint(
        &mut self,
        tenant: &Tenant,
        ip: Prefix<IpAddr>,
        mac: Mac,
        place: Place,
        route: Route,
    ) -> Result<(), TableError> {
        check_prefix(ip)?;
        let key = prefix_key(tenant.id, ip, &Match::default());
        match self.endpoints.entry(key) {
            Entry::Vacant(entry) => entry.insert(Endpoint { key, mac, place }),
            Entry::Occupied(_) => {
                let (ip, bits) = (ip.address, ip.bits);
                return Err(TableError::DuplicateAddress { tenant: tenant.id, ip, bits });
            }
        };
        let v6 = ip.address.is_ipv6();
        self.endpoint_bits.entry(tenant.id).or_default().insert((v6, ip.bits));
        self.tuple(tenant.id, v6, ip.bits, Fields::default())?;
        self.routes.insert(key, Route { key, ..route });
        if mac == Mac::ZERO {
            return Ok(());
        }
        let key = mac_key(tenant.id.0, mac);
        match self.endpoints.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Endpoint { key, mac, place });
                self.routes.insert(key, Route { key, link_only: true, ..route });
                Ok(())
            }
            Entry::Occupied(entry) if entry.get().place == place => Ok(()),
            Entry::Occupied(_) => Err(TableError::DuplicateMac { tenant: tenant.id, mac }),
        }
    }
}

/// A station's address, or zero for "any".
fn unicast(mac: Option<Mac>) -> Result<Mac, TableError> {
    match mac {
        None => Ok(Mac::ZERO),
        Some(mac) if mac.is_unicast() => Ok(mac),
        Some(mac) => Err(TableError::NotUnicast { mac }),
    }
}

pub(super) fn check_prefix(prefix: Prefix<IpAddr>) -> Result<(), TableError> {
    let kind = Kind::of(prefix.address);
    let bits_max = if prefix.address.is_ipv4() { 32 } else { 128 };
    let inside = number(prefix.address) & !address_mask(kind, prefix.bits) == 0;
    if prefix.bits > bits_max || !inside {
        return Err(TableError::Prefix { ip: prefix.address, bits: prefix.bits });
    }
    Ok(())
}
