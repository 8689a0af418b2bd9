//! What healed converges: every operation is over or held by what people can change, every volume is served where the
//! control plane says, every lease has its holder, every node does what its snapshot says.

use contract::{Blocked, Holder, Role, Serving, VolumeState};
use control_core::Core;

use super::First;
use crate::node::Node;
use crate::plane::place_of;

/// The state in the end.
#[derive(Clone, Debug, Default)]
pub struct Converges {
    /// The first violation.
    pub first: First,
}

impl Converges {
    /// Says what is not yet as it should be.
    pub fn missing(core: &Core, nodes: &[Node]) -> Option<String> {
        operations(core, nodes)
            .or_else(|| volumes(core, nodes))
            .or_else(|| leases(core))
            .or_else(|| snapshots(core, nodes))
    }
}

fn held(blocked: Option<&Blocked>) -> bool {
    matches!(blocked, Some(Blocked::Limit { .. } | Blocked::Capacity { .. } | Blocked::NoNode { .. }))
}

fn describe(nodes: &[Node], volume: contract::VolumeId) -> String {
    nodes.iter().map(|node| node.describe(volume)).collect::<Vec<_>>().join("; ")
}

fn operations(core: &Core, nodes: &[Node]) -> Option<String> {
    let mut open = core.operations().filter(|operation| !operation.phase.is_over());
    open.find(|operation| !held(operation.blocked_on.as_ref()))
        .map(|operation| format!("{operation:?}; {}", describe(nodes, operation.volume)))
}

fn volumes(core: &Core, nodes: &[Node]) -> Option<String> {
    for volume in core.volumes() {
        let works =
            core.operations().any(|operation| operation.volume == volume.id && !operation.phase.is_over());
        let fine = match (volume.state, volume.head) {
            (VolumeState::Serving, Some(head)) => {
                let place = core.node(head.node).and_then(|node| place_of(&node.info.name));
                let served = place.and_then(|place| nodes.get(place)).and_then(|node| node.serves(volume.id));
                served == Some((head.epoch, Serving::Active))
            }
            // Somebody must ask again: it could not be made, or not be removed.
            (VolumeState::Failed | VolumeState::Deleting, _) => true,
            _ => works,
        };
        if !fine {
            let last = core.operations().filter(|one| one.volume == volume.id).last();
            return Some(format!("{volume:?}; {last:?}; {}", describe(nodes, volume.id)));
        }
    }
    None
}

fn leases(core: &Core) -> Option<String> {
    for lease in core.leases() {
        let has_holder = match &lease.holder {
            Holder::Volume(id) => {
                let head = core.volume(*id).and_then(|volume| volume.head);
                let works =
                    core.operations().any(|operation| operation.volume == *id && operation.phase.counts());
                head.is_some_and(|head| head.lease == lease.id) || works
            }
            Holder::Operation(id) => core.operation(*id).is_some_and(|operation| operation.phase.counts()),
            Holder::Consumer(_) => true,
        };
        if !has_holder {
            let volume = match &lease.holder {
                Holder::Volume(id) => core.volume(*id),
                _ => None,
            };
            let last = core.operations().filter(|one| lease.holder == Holder::Volume(one.volume)).last();
            return Some(format!("{lease:?}; {volume:?}; {last:?}"));
        }
    }
    None
}

fn snapshots(core: &Core, nodes: &[Node]) -> Option<String> {
    for node in core.nodes() {
        let Some(place) = place_of(&node.info.name) else { continue };
        let Some(runs) = nodes.get(place).map(Node::snapshot) else { continue };
        let should = core.snapshot(node.id, runs.version);
        if should != *runs {
            let of = |snapshot: &contract::NodeSnapshot| {
                snapshot.volumes.iter().filter(|placed| placed.role == Role::Active).count()
            };
            let odd: Vec<_> = should
                .volumes
                .iter()
                .filter(|placed| !runs.volumes.contains(placed))
                .chain(runs.volumes.iter().filter(|placed| !should.volumes.contains(placed)))
                .collect();
            return Some(format!("n{place} serves {} of {} volumes; {odd:?}", of(runs), of(&should)));
        }
    }
    None
}
