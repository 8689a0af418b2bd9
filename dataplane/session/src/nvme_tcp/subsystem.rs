//! A subsystem: what hosts may find behind one name, and the controllers through which they do.
//!
//! A storage subsystem has namespaces; a discovery subsystem has the list of the others. Both belong to one
//! worker with all their queues (decision D6).
//!
//! Namespaces come, grow and go while hosts are attached. What a host is told at first of how many there can be, and
//! how many groups of them, is therefore a bound that never changes: by it hosts choose how much of a log they read.
//!
//! Invariants: a controller lives from its admin queue's Connect until that queue ends, it is reset, or its
//! host is silent for too long; its number comes back only after all others were used. A namespace has a number and a
//! volume that no other one of the subsystem has.

use block::{BlockSize, VOLUME_BYTES_MAX, VolumeId};
use thiserror::Error;
use wire::nvme::StatusCode;
use wire::nvme::data::{Events, NAMESPACE_ALL};
use wire::nvme::fabrics::{DISCOVERY_NQN, NQN_BYTES_MAX};

use super::admin::{Refusal, field};
use super::controller::Controller;

/// "CNTLID [...] valid values are from 0h to FFEFh" (base clause 5.17.2.1); 0 is left out, as most targets do.
pub const CONTROLLER_LAST: u16 = 0xffef;

/// Namespaces of one subsystem, at most, and the highest number of one (NN, MNAN): what hosts keep for the states of
/// so many is some KiB.
pub const NAMESPACES_MAX: u32 = 256;

/// I/O queues of a controller, at most.
pub const QUEUES_MAX: u16 = 127;

/// Places that every queue may have: Linux gives its admin queues 32, before it can know of fewer.
pub const ENTRIES_MIN: u16 = 32;

/// Places of a queue, at most: each takes about half a KiB.
pub const ENTRIES_MAX: u16 = 1024;

/// Controllers and queues of one subsystem, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubsystemLimits {
    /// Number of the first controller. Nodes that serve one subsystem have ranges of their own (decision D13).
    pub controller_first: u16,
    /// Controllers: hosts that are attached at once, paths of one host counted apart.
    pub controllers_max: u16,
    /// I/O queues of a controller, at most [`QUEUES_MAX`].
    pub queues_max: u16,
    /// Places of a queue (MQES, MAXCMD), from [`ENTRIES_MIN`] to [`ENTRIES_MAX`].
    pub entries_max: u16,
}

impl Default for SubsystemLimits {
    fn default() -> Self {
        // Places: twice what Linux asks for unless told otherwise, so that a host can have 128 commands under way on
        // one queue.
        Self { controller_first: 1, controllers_max: 128, queues_max: 64, entries_max: 256 }
    }
}

/// Who may attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Hosts {
    /// Every host.
    #[default]
    Any,
    /// Hosts with these NQNs.
    Only(Vec<String>),
}

impl Hosts {
    /// The host with this NQN may.
    pub fn allow(&self, host: &str) -> bool {
        match self {
            Hosts::Any => true,
            Hosts::Only(hosts) => hosts.iter().any(|allowed| allowed == host),
        }
    }
}

/// A volume under a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub(super) volume: VolumeId,
    pub(super) block_size: BlockSize,
    pub(super) blocks: u64,
    /// NGUID and, in its form, the UUID: the same for the same volume, wherever and whenever it is served.
    pub(super) identity: [u8; 16],
    pub(super) read_only: bool,
    /// NSID and ANAGRPID: what one namespace is reached through says nothing of another.
    pub(super) number: u32,
    pub(super) access: Access,
    /// How often `access` has changed: the group's change count.
    pub(super) access_changes: u64,
}

/// How the hosts of a subsystem reach one of its namespaces here (base clause 8.1, asymmetric namespace access).
pub use wire::nvme::data::AnaState as Access;

/// A namespace cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NamespaceError {
    /// Larger than a volume can be, or empty.
    #[error("a namespace of {blocks} blocks; it has at least one, and at most {VOLUME_BYTES_MAX} bytes")]
    Size {
        /// Its size in blocks.
        blocks: u64,
    },
    /// Hosts tell namespaces apart by it.
    #[error("the identity of a namespace is zero, which stands for none")]
    Identity,
    /// Outside of what hosts are told.
    #[error("{number} is no number of a namespace, they are 1 to {NAMESPACES_MAX}")]
    Number {
        /// The number.
        number: u32,
    },
}

impl Namespace {
    /// Shows `volume`, which has `blocks` blocks of `block_size`, as namespace 1. `identity` is its own among all
    /// volumes in the world, for ever.
    pub fn new(
        volume: VolumeId,
        block_size: BlockSize,
        blocks: u64,
        identity: [u8; 16],
        read_only: bool,
    ) -> Result<Namespace, NamespaceError> {
        if blocks == 0 || blocks > VOLUME_BYTES_MAX >> block_size.shift() {
            return Err(NamespaceError::Size { blocks });
        }
        if identity == [0; 16] {
            return Err(NamespaceError::Identity);
        }
        let (number, access, access_changes) = (1, Access::Optimized, 0);
        Ok(Namespace { volume, block_size, blocks, identity, read_only, number, access, access_changes })
    }

    /// Its number (NSID), the same wherever its subsystem is served.
    pub fn with_number(self, number: u32) -> Result<Namespace, NamespaceError> {
        if !is_valid(number) {
            return Err(NamespaceError::Number { number });
        }
        Ok(Namespace { number, ..self })
    }

    /// Hosts reach it in this state from the beginning.
    pub fn with_access(self, access: Access) -> Namespace {
        Namespace { access, ..self }
    }

    /// Base clause 8.1: in the states Inaccessible, Persistent Loss and Change, I/O commands end with the status of
    /// that name, after which a host may try again on another path.
    pub(super) fn check_access(&self) -> Result<(), Refusal> {
        let status = match self.access {
            Access::Optimized | Access::NonOptimized => return Ok(()),
            Access::Inaccessible => StatusCode::ANA_INACCESSIBLE,
            Access::PersistentLoss => StatusCode::ANA_PERSISTENT_LOSS,
            Access::Change => StatusCode::ANA_TRANSITION,
        };
        Err(Refusal::passing(status))
    }

    /// RFC 9562, clause 5.8: the identity, marked as a UUID whose bits have a form of their own.
    pub fn uuid(&self) -> [u8; 16] {
        let mut uuid = self.identity;
        uuid[6] = (uuid[6] & 0x0f) | 0x80;
        uuid[8] = (uuid[8] & 0x3f) | 0x80;
        uuid
    }
}

/// A subsystem in the list that a discovery subsystem gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its NQN.
    pub nqn: String,
    /// The hosts that are told of it.
    pub hosts: Hosts,
}

#[derive(Debug)]
pub(super) enum Content {
    /// By number.
    Namespaces(Vec<Namespace>),
    Discovery {
        generation: u64,
        listed: Vec<Listed>,
    },
}

/// A subsystem cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SubsystemError {
    /// Not a name as base clause 4.5 has it.
    #[error("{nqn:?} is no NVMe qualified name: it begins with nqn.yyyy-mm. and has at most 223 bytes")]
    Name {
        /// The name.
        nqn: String,
    },
    /// Another namespace is there.
    #[error(transparent)]
    Taken(#[from] Taken),
}

/// A namespace cannot be added: another one has its number, or its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the subsystem has a namespace {number} already, or its volume under another number")]
pub struct Taken {
    /// The number.
    pub number: u32,
}

/// No such namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the subsystem has no namespace of volume {0}")]
pub struct Unknown(pub VolumeId);

/// See the module's documentation.
#[derive(Debug)]
pub struct Subsystem {
    pub(super) nqn: Box<str>,
    pub(super) serial: Box<str>,
    pub(super) hosts: Hosts,
    pub(super) content: Content,
    pub(super) limits: SubsystemLimits,
    pub(super) controllers: Vec<Controller>,
    /// The next number to try, counted from `limits.controller_first`.
    pub(super) controller_next: u16,
    /// Changes of namespaces' access states, and of which namespaces there are: the change count of their log.
    pub(super) access_changes: u64,
    /// A queue has something for another one.
    pub(super) has_call: bool,
    /// When the first host came.
    pub(super) started_ns: Option<u64>,
}

/// One queue's place: a controller, and which of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    pub controller: u16,
    /// Tells a controller from a later one with its number.
    pub generation: u64,
    pub queue: u16,
}

impl Subsystem {
    /// A subsystem that `hosts` reach under `nqn`, which may be without namespaces. `serial` (20 characters of ASCII) is
    /// its own among all.
    pub fn new(
        nqn: &str,
        serial: &str,
        hosts: Hosts,
        namespaces: Vec<Namespace>,
        limits: SubsystemLimits,
    ) -> Result<Subsystem, SubsystemError> {
        if !is_nqn(nqn) {
            return Err(SubsystemError::Name { nqn: nqn.to_owned() });
        }
        let content = Content::Namespaces(Vec::new());
        let mut subsystem = Subsystem::with(nqn, serial, hosts, content, limits);
        for namespace in namespaces {
            subsystem.add(namespace)?;
        }
        subsystem.access_changes = 0;
        Ok(subsystem)
    }

    /// The discovery subsystem, which tells each host of those in `listed` that it may attach to.
    pub fn discovery(listed: Vec<Listed>, limits: SubsystemLimits) -> Subsystem {
        let content = Content::Discovery { generation: 1, listed };
        Subsystem::with(DISCOVERY_NQN, "discovery", Hosts::Any, content, limits)
    }

    fn with(nqn: &str, serial: &str, hosts: Hosts, content: Content, limits: SubsystemLimits) -> Subsystem {
        let queues_max = limits.queues_max.clamp(1, QUEUES_MAX);
        let entries_max = limits.entries_max.clamp(ENTRIES_MIN, ENTRIES_MAX);
        let controller_first = limits.controller_first.clamp(1, CONTROLLER_LAST);
        let controllers_max = limits.controllers_max.min(CONTROLLER_LAST - controller_first + 1);
        Subsystem {
            nqn: nqn.into(),
            serial: serial.into(),
            hosts,
            content,
            limits: SubsystemLimits { controller_first, controllers_max, queues_max, entries_max },
            controllers: Vec::new(),
            controller_next: 0,
            access_changes: 0,
            has_call: false,
            started_ns: None,
        }
    }

    /// Its name.
    pub fn nqn(&self) -> &str {
        &self.nqn
    }

    /// Hosts that are attached.
    pub fn controllers(&self) -> usize {
        self.controllers.len()
    }

    /// The volume behind `volume` has another size now; hosts that want to know are told with the next step
    /// of their admin queues.
    pub fn resize(&mut self, volume: VolumeId, blocks: u64) -> Result<(), Unknown> {
        let namespace = self.namespace_of(volume)?;
        if std::mem::replace(&mut namespace.blocks, blocks) != blocks {
            let number = namespace.number;
            self.controllers.iter_mut().for_each(|controller| controller.change(number));
        }
        Ok(())
    }

    /// Hosts find `namespace` from now on, and those that want to know are told.
    pub fn add(&mut self, namespace: Namespace) -> Result<(), Taken> {
        let (number, volume) = (namespace.number, namespace.volume);
        let Content::Namespaces(namespaces) = &mut self.content else { return Err(Taken { number }) };
        if namespaces.iter().any(|one| one.number == number || one.volume == volume) {
            return Err(Taken { number });
        }
        // Lists are "in increasing order".
        let at = namespaces.partition_point(|one| one.number < number);
        namespaces.insert(at, namespace);
        self.changed(number);
        Ok(())
    }

    /// `volume` is not behind a namespace any more: commands to it are refused, also those that wait, and hosts that
    /// want to know are told.
    pub fn remove(&mut self, volume: VolumeId) -> Result<(), Unknown> {
        let number = self.namespace_of(volume)?.number;
        if let Content::Namespaces(namespaces) = &mut self.content {
            namespaces.retain(|one| one.number != number);
        }
        self.changed(number);
        Ok(())
    }

    /// A namespace has come or gone, and its group with it.
    fn changed(&mut self, number: u32) {
        self.access_changes += 1;
        self.controllers.iter_mut().for_each(|controller| controller.change(number));
    }

    /// Hosts reach `volume` in another state from now on. What was handed out goes on; what waits is refused with the
    /// status of the state.
    pub fn set_access(&mut self, volume: VolumeId, access: Access) -> Result<(), Unknown> {
        let namespace = self.namespace_of(volume)?;
        if std::mem::replace(&mut namespace.access, access) != access {
            namespace.access_changes += 1;
            self.access_changes += 1;
            self.controllers.iter_mut().for_each(|controller| controller.notify(Events::ANA));
        }
        Ok(())
    }

    /// How hosts reach `volume`.
    pub fn access(&self, volume: VolumeId) -> Option<Access> {
        self.namespaces().iter().find(|one| one.volume == volume).map(|one| one.access)
    }

    fn namespace_of(&mut self, volume: VolumeId) -> Result<&mut Namespace, Unknown> {
        let Content::Namespaces(namespaces) = &mut self.content else { return Err(Unknown(volume)) };
        namespaces.iter_mut().find(|one| one.volume == volume).ok_or(Unknown(volume))
    }

    /// The discovery subsystem tells of others from now on. Does nothing to one with namespaces.
    pub fn list(&mut self, listed: Vec<Listed>) {
        let Content::Discovery { generation, listed: old } = &mut self.content else { return };
        if *old == listed {
            return;
        }
        *old = listed;
        *generation += 1;
        for controller in &mut self.controllers {
            controller.notify(Events::DISCOVERY);
        }
    }

    /// A queue has something for another one: all are to be driven. Says so once.
    pub fn take_call(&mut self) -> bool {
        std::mem::take(&mut self.has_call)
    }

    /// Lets go of controllers whose hosts were silent for longer than they promised. Their queues find out
    /// when they are asked to expire.
    pub fn expire(&mut self, now_ns: u64) {
        self.controllers.retain(|controller| !controller.is_silent(now_ns));
    }

    pub(super) fn controller(&self, seat: Seat) -> Option<&Controller> {
        self.controllers.iter().find(|one| one.id == seat.controller && one.generation == seat.generation)
    }

    pub(super) fn controller_mut(&mut self, seat: Seat) -> Option<&mut Controller> {
        self.controllers.iter_mut().find(|one| one.id == seat.controller && one.generation == seat.generation)
    }

    /// The queue's connection has ended. Without its admin queue a controller is gone: base clause 3.3.2.1.
    pub(super) fn leave(&mut self, seat: Seat) {
        if seat.queue == 0 {
            self.controllers.retain(|one| (one.id, one.generation) != (seat.controller, seat.generation));
        } else if let Some(controller) = self.controller_mut(seat) {
            controller.leave(seat.queue);
            self.has_call = true;
        }
    }

    pub(super) fn namespaces(&self) -> &[Namespace] {
        match &self.content {
            Content::Namespaces(namespaces) => namespaces,
            Content::Discovery { .. } => &[],
        }
    }

    pub(super) fn namespace(&self, number: u32) -> Option<&Namespace> {
        self.namespaces().iter().find(|one| one.number == number)
    }

    /// The namespace of a command. Base figure 87: "specifying an inactive namespace identifier" is an invalid field,
    /// and so is FFFFFFFFh where one namespace is asked for; "specifying an invalid namespace identifier" has a status of
    /// its own.
    pub(super) fn active(&self, number: u32) -> Result<&Namespace, Refusal> {
        self.namespace(number).ok_or_else(|| match is_valid(number) || number == NAMESPACE_ALL {
            true => Refusal::field(field::NAMESPACE),
            false => StatusCode::INVALID_NAMESPACE.into(),
        })
    }

    /// The namespace of an I/O command, if it can be reached.
    pub(super) fn reach(&self, number: u32) -> Result<&Namespace, Refusal> {
        let namespace = self.active(number)?;
        namespace.check_access().map(|()| namespace)
    }

    /// The same for a command that waited: what has its number now may be another volume, and its own is inactive.
    pub(super) fn reach_still(&self, number: u32, volume: VolumeId) -> Result<&Namespace, Refusal> {
        let namespace = self.reach(number)?;
        if namespace.volume == volume { Ok(namespace) } else { Err(Refusal::field(field::NAMESPACE)) }
    }

    pub(super) fn is_discovery(&self) -> bool {
        matches!(self.content, Content::Discovery { .. })
    }
}

/// A namespace could have this number (base clause 3.2.1.2), whether or not one has it.
pub(super) fn is_valid(number: u32) -> bool {
    (1..=NAMESPACES_MAX).contains(&number)
}

/// Base clause 4.5: an NVMe qualified name is "nqn.", a year and a month, and more, in at most 223 bytes. That
/// of the discovery subsystem is every controller's, and no subsystem's own.
pub fn is_nqn(nqn: &str) -> bool {
    let Some(rest) = nqn.strip_prefix("nqn.") else { return false };
    let date = rest.as_bytes();
    nqn.len() <= NQN_BYTES_MAX
        && !nqn.contains('\0')
        && date.len() > 8
        && date[..4].iter().all(u8::is_ascii_digit)
        && date[4] == b'-'
        && date[5..7].iter().all(u8::is_ascii_digit)
        && date[7] == b'.'
        && nqn != DISCOVERY_NQN
}
