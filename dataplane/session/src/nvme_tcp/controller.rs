//! A controller: its properties, its queues, whether its host lives, and what it has to tell.
//!
//! Invariants: it carries out nothing but Fabrics commands while it is not enabled; of each kind of event at
//! most one notice is under way until the host has read the log that it points to; requests for events are
//! bounded.

use arrayvec::ArrayVec;
use wire::nvme::StatusCode;
use wire::nvme::data::{Events, Health, LIST_MAX, LogPage, NAMESPACE_ALL};
use wire::nvme::fabrics::Property;

use super::abort::Aborts;
use super::errors::Errors;
use super::features::Features;
use super::setup::Attach;
use super::subsystem::SubsystemLimits;
use super::{EVENT_REQUESTS_MAX, VERSION};

/// KAS: the keep-alive timer counts in steps of 1 s.
pub(super) const KEEP_ALIVE_STEPS: u16 = 10;
const KEEP_ALIVE_STEP_MS: u32 = KEEP_ALIVE_STEPS as u32 * 100;
/// CAP.TO and CRTO.CRWMT: at most 15 s until it is ready, in steps of 500 ms.
const READY_STEPS: u64 = 30;

/// CC (base clause 3.1.3.5).
mod cc {
    pub const ENABLE: u32 = 1;
    pub const SHUTDOWN: u32 = 0b11 << 14;
    /// CSS, MPS, AMS, IOSQES and IOCQES.
    pub const SETTINGS: u32 = 0x00ff_3ff0;
    /// Entries of 64 and 16 bytes; all else 0: the command set NVM, pages of 4 KiB, round robin.
    pub const WANTED: u32 = 6 << 16 | 4 << 20;
}

/// CSTS (base clause 3.1.3.6).
mod csts {
    pub const READY: u32 = 1;
    pub const FATAL: u32 = 1 << 1;
    pub const SHUTDOWN_COMPLETE: u32 = 0b10 << 2;
}

#[derive(Debug)]
pub(super) struct Controller {
    pub id: u16,
    pub generation: u64,
    host: Box<str>,
    host_id: [u8; 16],
    cc: u32,
    csts: u32,
    keep_alive_ms: u32,
    heard_ns: u64,
    /// I/O queues that are connected: bit n is queue n.
    queues: u128,
    limits: SubsystemLimits,
    pub features: Features,
    pub usage: Usage,
    pub errors: Errors,
    /// Of commands of I/O queues.
    pub aborts: Aborts,
    /// Identifiers of the commands that wait for an event.
    requests: ArrayVec<u16, EVENT_REQUESTS_MAX>,
    /// What the host is to be told.
    pending: Events,
    /// What it was told, without having read the log since.
    told: Events,
    /// Namespaces that changed since the host read the list; more than that is all.
    changed: Vec<u32>,
}

/// What a controller has carried out, for its health log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
}

impl Usage {
    pub fn add(&mut self, more: Usage) {
        self.reads += more.reads;
        self.read_bytes += more.read_bytes;
        self.writes += more.writes;
        self.written_bytes += more.written_bytes;
    }
}

impl Controller {
    pub fn new(
        id: u16,
        generation: u64,
        attach: &Attach,
        limits: SubsystemLimits,
        now_ns: u64,
    ) -> Controller {
        let mut controller = Controller {
            id,
            generation,
            host: attach.host().into(),
            host_id: attach.host_id,
            cc: 0,
            csts: 0,
            keep_alive_ms: 0,
            heard_ns: now_ns,
            queues: 0,
            limits,
            features: Features::new(limits.queues_max),
            usage: Usage::default(),
            errors: Errors::default(),
            aborts: Aborts::default(),
            requests: ArrayVec::new(),
            pending: Events::NONE,
            told: Events::NONE,
            changed: Vec::new(),
        };
        controller.set_keep_alive(attach.connect.keep_alive_ms, now_ns);
        controller
    }

    /// The same host asks.
    pub fn is_of(&self, attach: &Attach) -> bool {
        *self.host == *attach.host() && self.host_id == attach.host_id
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn host_id(&self) -> [u8; 16] {
        self.host_id
    }

    /// Commands other than those of Fabrics are carried out.
    pub fn is_ready(&self) -> bool {
        self.csts & (csts::READY | csts::FATAL) == csts::READY
    }

    pub fn queues_granted(&self) -> u16 {
        self.features.queues().min(self.limits.queues_max)
    }

    /// No I/O queue is there yet.
    pub fn has_queues(&self) -> bool {
        self.queues != 0
    }

    /// An I/O queue is connected; false if it was already.
    pub fn join(&mut self, queue: u16) -> bool {
        let bit = 1 << (queue & 127);
        let is_new = self.queues & bit == 0;
        self.queues |= bit;
        is_new
    }

    pub fn has_queue(&self, queue: u16) -> bool {
        queue == 0 || self.queues & 1 << (queue & 127) != 0
    }

    pub fn leave(&mut self, queue: u16) {
        self.queues &= !(1 << (queue & 127));
        self.aborts.carry_out(queue, |_| false);
    }

    /// KATO, rounded up to what the timer counts in; 0 lets the host be silent for ever.
    pub fn set_keep_alive(&mut self, ms: u32, now_ns: u64) {
        self.keep_alive_ms = ms.div_ceil(KEEP_ALIVE_STEP_MS).saturating_mul(KEEP_ALIVE_STEP_MS);
        self.heard_ns = now_ns;
    }

    pub fn keep_alive_ms(&self) -> u32 {
        self.keep_alive_ms
    }

    pub fn keep_alive(&mut self, now_ns: u64) {
        self.heard_ns = now_ns;
    }

    pub fn is_silent(&self, now_ns: u64) -> bool {
        let most_ns = u64::from(self.keep_alive_ms) * 1_000_000;
        most_ns > 0 && now_ns.saturating_sub(self.heard_ns) > most_ns
    }

    /// Of a subsystem that hosts have used for `up_ns`.
    pub fn health(&self, up_ns: u64) -> Health {
        let units = |bytes: u64| u128::from(bytes.div_ceil(512 * 1000));
        Health {
            read_units: units(self.usage.read_bytes),
            written_units: units(self.usage.written_bytes),
            reads: self.usage.reads.into(),
            writes: self.usage.writes.into(),
            hours: u128::from(up_ns / 3_600_000_000_000),
            media_errors: self.errors.media().into(),
            errors: self.errors.count().into(),
        }
    }

    /// Base clause 6.5, and 3.1.3 for what the properties hold.
    pub fn property(&self, property: Property, is_long: bool) -> Result<u64, StatusCode> {
        let (value, has_8_bytes) = match property {
            // MQES, CQR, TO, and the command set NVM; pages of 4 KiB, no more. CRMS: ready means ready with media
            // (CRWMS), which "shall be set to '1' on controllers compliant with [...] 2.0"; no other way (CRIMS).
            Property::CAP => (
                u64::from(self.limits.entries_max - 1) | 1 << 16 | READY_STEPS << 24 | 1 << 37 | 1 << 59,
                true,
            ),
            Property::VS => (VERSION.into(), false),
            Property::CC => (self.cc.into(), false),
            Property::CSTS => (self.csts.into(), false),
            Property::CRTO => (READY_STEPS, false),
            _ => return Err(StatusCode::INVALID_FIELD),
        };
        if has_8_bytes == is_long { Ok(value) } else { Err(StatusCode::INVALID_FIELD) }
    }

    /// Base clause 6.6. Of all properties, hosts write only CC; NSSR is not announced.
    pub fn set_property(&mut self, property: Property, is_long: bool, value: u64) -> Result<(), StatusCode> {
        let (Property::CC, false) = (property, is_long) else { return Err(StatusCode::INVALID_FIELD) };
        let (old, new) = (self.cc, value as u32);
        self.cc = new;
        if new & cc::ENABLE != 0 && old & cc::ENABLE == 0 {
            // A discovery controller has no I/O queues, and its hosts may leave their entries' sizes at 0.
            let fits = matches!(new & cc::SETTINGS, cc::WANTED | 0);
            self.csts = if fits { csts::READY } else { csts::FATAL };
        }
        if new & cc::ENABLE == 0 && old & cc::ENABLE != 0 {
            self.reset();
        }
        if new & cc::SHUTDOWN != 0 && old & cc::SHUTDOWN == 0 {
            // Nothing is lost by it that was not flushed: what is under way goes on.
            self.csts |= csts::SHUTDOWN_COMPLETE;
        }
        Ok(())
    }

    /// Base clause 3.7.2: the I/O queues are gone, and so is all that was set.
    fn reset(&mut self) {
        self.csts = 0;
        self.queues = 0;
        self.features = Features::new(self.limits.queues_max);
        self.requests.clear();
        self.aborts = Aborts::default();
        self.errors.clear();
        (self.pending, self.told) = (Events::NONE, Events::NONE);
        self.changed.clear();
    }

    /// Base clause 5.2: answered when there is an event.
    pub fn hold(&mut self, command: u16) -> Result<(), StatusCode> {
        self.requests.try_push(command).map_err(|_| StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED)
    }

    /// Base clause 5.1: takes a request for an event back; false if it is none that waits.
    pub fn abort(&mut self, command: u16) -> bool {
        let before = self.requests.len();
        self.requests.retain(|request| *request != command);
        self.requests.len() < before
    }

    pub fn holds(&self, command: u16) -> bool {
        self.requests.contains(&command) || self.aborts.holds(command)
    }

    /// A namespace changed.
    pub fn change(&mut self, namespace: u32) {
        if !self.changed.contains(&namespace) && self.changed.len() <= LIST_MAX {
            self.changed.push(namespace);
        }
        self.notify(Events::NAMESPACES);
    }

    pub fn notify(&mut self, events: Events) {
        self.pending = self.pending.with(events);
    }

    fn due(&self) -> Events {
        Events(self.pending.0 & self.features.events().0).without(self.told)
    }

    /// Base clause 5.2.1: the next answer to a request for events, and the command it answers.
    pub fn news(&mut self) -> Option<(u16, u64)> {
        let due = self.due();
        // Type 010b, a notice; what it is about; the log to read.
        let (event, about, log) = if due.has(Events::NAMESPACES) {
            (Events::NAMESPACES, 0x00, LogPage::CHANGED_NAMESPACES)
        } else if due.has(Events::ANA) {
            (Events::ANA, 0x03, LogPage::ANA)
        } else if due.has(Events::DISCOVERY) {
            (Events::DISCOVERY, 0xf0, LogPage::DISCOVERY)
        } else {
            return None;
        };
        let command = self.requests.pop_at(0)?;
        self.pending = self.pending.without(event);
        self.told = self.told.with(event);
        Some((command, 0b010 | about << 8 | u64::from(log.0) << 16))
    }

    /// The host has read the log that an event points to, and wants to hear of the next one.
    pub fn was_read(&mut self, event: Events) {
        self.told = self.told.without(event);
    }

    /// "Changed Namespace List": FFFFFFFFh where there is no room for all.
    pub fn changed(&self) -> impl Iterator<Item = u32> {
        let all = self.changed.len() > LIST_MAX;
        let mut changed = if all { vec![NAMESPACE_ALL] } else { self.changed.clone() };
        changed.sort_unstable();
        changed.into_iter()
    }

    pub fn forget_changed(&mut self) {
        self.changed.clear();
        self.pending = self.pending.without(Events::NAMESPACES);
    }
}
