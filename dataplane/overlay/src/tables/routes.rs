//! Rules and volumes: the routes that an operator writes, and who pays.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::build::{Builder, contains};
use super::endpoints::check_prefix;
use super::key::{Fields, Match, mac_key, number, prefix_key, volume_key};
use super::{Key, MASK_TUPLES_MAX, Route, RouteKind, Slot, TableError, VolumeSlot};
use crate::config::{Action, Destination, Rule, Tenant, TenantId, VolumeId};

impl<'a> Builder<'a> {
    /// Notes that the tenant uses a kind of match.
    pub(super) fn tuple(
        &mut self,
        tenant: TenantId,
        v6: bool,
        bits: u8,
        fields: Fields,
    ) -> Result<(), TableError> {
        let tuples = self.route_tuples.entry(tenant).or_default();
        tuples.insert((v6, bits, fields));
        let single = |(v6, bits, fields): &&(bool, u8, Fields)| {
            *fields == Fields::default() && *bits == if *v6 { 128 } else { 32 }
        };
        let count = tuples.len() - tuples.iter().filter(single).count();
        if count > MASK_TUPLES_MAX {
            return Err(TableError::Tuples { tenant, count, max: MASK_TUPLES_MAX });
        }
        Ok(())
    }

    pub(super) fn volumes(&mut self) -> Result<(), TableError> {
        let mut owners = HashMap::<VolumeId, TenantId>::new();
        for (position, volume) in self.config.volumes.iter().enumerate() {
            let id = volume.id;
            if id.0 == frame::Meta::NO_VOLUME {
                return Err(TableError::VolumeNumber { id });
            }
            let tenant = self.named_tenant("volume", position, volume.tenant)?;
            let owner = *owners.entry(id).or_insert(volume.tenant);
            let v6 = volume.server.is_ipv6();
            let key = volume_key(volume.tenant.0, v6, number(volume.server), volume.port);
            let slot = VolumeSlot { key, volume: id.0 };
            if owner != volume.tenant || self.volumes.insert(key, slot).is_some() {
                return Err(TableError::DuplicateVolume { position });
            }
            let mut sources = tenant.attachments.iter().flat_map(|at| &at.sources);
            let local = sources.any(|source| contains(source.ip, volume.server));
            let info = &mut self.tables.tenants[usize::from(volume.tenant.0)];
            info.volumes_local |= local;
            info.volumes_remote |= !local;
        }
        self.volume_owners = owners;
        Ok(())
    }

    pub(super) fn rules(&mut self) -> Result<(), TableError> {
        for (position, rule) in self.config.rules.iter().enumerate() {
            let tenant = self.named_tenant("rule", position, rule.tenant)?;
            let key = self.rule_key(position, rule)?;
            let route = self.route(position, rule, tenant)?;
            match self.routes.entry(key) {
                Entry::Occupied(entry) if entry.get().rule != crate::Outcomes::NO_RULE => {
                    let first = entry.get().rule as usize;
                    return Err(TableError::DuplicateRule { first, second: position });
                }
                // A rule overrides the route that an endpoint implies.
                entry => entry.insert_entry(Route { key, ..route }),
            };
        }
        Ok(())
    }

    fn named_tenant(
        &self,
        what: &'static str,
        position: usize,
        tenant: TenantId,
    ) -> Result<&'a Tenant, TableError> {
        let found = self.by_id.get(&tenant).copied();
        found.ok_or(TableError::UnknownTenant { what, position, tenant })
    }

    fn rule_key(&mut self, position: usize, rule: &Rule) -> Result<Key, TableError> {
        let matching = Match {
            transport: rule.transport,
            source_port: rule.source_port,
            destination_port: rule.destination_port,
        };
        match rule.destination {
            Destination::Ip(prefix) => {
                check_prefix(prefix)?;
                self.tuple(rule.tenant, prefix.address.is_ipv6(), prefix.bits, matching.fields())?;
                Ok(prefix_key(rule.tenant, prefix, &matching))
            }
            Destination::Mac(_) if matching != Match::default() => {
                Err(TableError::MacWithTransport { position })
            }
            Destination::Mac(mac) if !mac.is_unicast() => Err(TableError::NotUnicast { mac }),
            Destination::Mac(mac) => Ok(mac_key(rule.tenant.0, mac)),
        }
    }

    fn route(&mut self, position: usize, rule: &Rule, tenant: &Tenant) -> Result<Route, TableError> {
        let empty = Route { rule: position as u32, vni: tenant.vni.value(), ..Route::EMPTY };
        match rule.action {
            Action::Trap => Ok(Route { kind: RouteKind::Trap, ..empty }),
            Action::Drop => Ok(Route { kind: RouteKind::Drop, ..empty }),
            Action::Forward { volume, vtep } => {
                if let Some(volume) = volume
                    && self.volume_owners.get(&volume).is_some_and(|owner| *owner != rule.tenant)
                {
                    return Err(TableError::ForeignVolume { position, volume });
                }
                if let Some(volume) = volume {
                    self.volume_owners.insert(volume, rule.tenant);
                }
                Ok(Route {
                    kind: RouteKind::Forward,
                    volume: volume.map_or(frame::Meta::NO_VOLUME, |volume| volume.0),
                    next_hop: self.next_hop(tenant, vtep)?,
                    port: tenant.underlay.0,
                    ..empty
                })
            }
        }
    }
}
