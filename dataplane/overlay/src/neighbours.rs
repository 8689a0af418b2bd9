//! Neighbours on Ethernet underlays: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861), sans-I/O.
//!
//! There is one entry per neighbour that some next hop of the tables needs (the endpoint itself, or the
//! router in front of it); nobody on the wire can add one. An entry goes through the states of RFC 4861,
//! clause 7.3.2, for both protocols:
//!
//! ```text
//!  idle --frame--> asking --answer--> reachable --time--> stale --frame--> probing --answer--> reachable
//!                    | no answer                                             | no answer
//!                    +------------------------> failed <---------------------+
//!  failed --time--> idle
//! ```
//!
//! While an entry is asking, a few frames wait for it, already encapsulated but for the MAC address. In
//! `failed`, which lasts as long as one request, frames are refused, so that a dead neighbour costs one
//! request a second and no memory.
//!
//! Several workers may send to one underlay. Each has a table of its own, but a message reaches only one of
//! them: it passes what concerns a known neighbour on ([`Neighbours::concerns`]), and the others overhear it.
//!
//! Invariants: waiting frames are bounded per neighbour and in all; a neighbour is asked at most once per
//! `retransmit_ns`; an address is learnt only from an answer to a request of ours, from a request to us, or
//! from an announcement about an entry that is known already.

mod message;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use frame::{DropReason, Frame, Pool};
use wire::Mac;

use crate::Tables;
use crate::encap::set_destination;
use message::Heard;
pub(crate) use message::{write_advertisement, write_arp};

/// Bounds and periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourLimits {
    /// Frames that wait for one neighbour, at most.
    pub held_per_neighbour: usize,
    /// Frames that wait for all neighbours together, at most.
    pub held: usize,
    /// A confirmed neighbour is asked again after this long, ns.
    pub reachable_ns: u64,
    /// Time between requests to one neighbour, ns (RFC 4861, clause 10: RETRANS_TIMER).
    pub retransmit_ns: u64,
    /// Requests before giving up (RFC 4861, clause 10: MAX_MULTICAST_SOLICIT).
    pub requests: u32,
}

impl Default for NeighbourLimits {
    fn default() -> NeighbourLimits {
        NeighbourLimits {
            held_per_neighbour: 8,
            held: 1024,
            reachable_ns: 30_000_000_000,
            retransmit_ns: 1_000_000_000,
            requests: 3,
        }
    }
}

/// What became of a frame given to [`Neighbours::process`].
#[derive(Debug)]
#[must_use]
pub enum Processed {
    /// The frame now is our answer: transmit it on its `egress_port`. Count the request under
    /// [`DropReason::Answered`] and the answer as generated.
    Reply(Frame),
    /// Freed; count it under the reason ([`DropReason::Answered`] when it taught us something).
    Dropped(DropReason),
}

/// A frame that [`Neighbours::dispatch`] hands out, to transmit on its `egress_port` or to count.
#[derive(Debug)]
#[must_use]
pub enum Emitted {
    /// A request made here: count it as generated.
    Generated(Frame),
    /// A frame that waited: it has its neighbour's address now.
    Released(Frame),
    /// A frame that waited in vain: free and count.
    Dropped(Frame, DropReason),
}

/// The neighbours of one worker.
#[derive(Debug)]
pub struct Neighbours {
    limits: NeighbourLimits,
    /// What encapsulation asks for, by next hop.
    hops: Vec<Hop>,
    entries: Vec<Entry>,
    by_address: HashMap<(u16, IpAddr), usize>,
    /// When which entry has something to do.
    deadlines: BTreeSet<(u64, usize)>,
    held: usize,
    /// Frames whose neighbour went away with a change of tables.
    orphans: Vec<Frame>,
    ident: u16,
}

/// The way from a next hop to the MAC address, in one load.
#[derive(Clone, Copy, Debug)]
struct Hop {
    mac: Mac,
    use_: Use,
    entry: u32,
}

/// What a frame may do with a hop's MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// There is none.
    None,
    /// Take it.
    Free,
    /// Take it, and let the neighbour be asked whether it still holds.
    Probe,
}

#[derive(Debug)]
struct Entry {
    port: u16,
    ip: IpAddr,
    mac: Mac,
    state: State,
    deadline_ns: Option<u64>,
    held: Vec<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// No address; this many requests were sent.
    Asking(u32),
    Reachable,
    Stale,
    /// An address in doubt; this many requests were sent.
    Probing(u32),
    Failed,
}

impl Neighbours {
    /// Nothing known yet about the next hops of `tables`.
    pub fn new(tables: &Tables, limits: NeighbourLimits) -> Neighbours {
        let mut neighbours = Neighbours {
            limits,
            hops: Vec::new(),
            entries: Vec::new(),
            by_address: HashMap::new(),
            deadlines: BTreeSet::new(),
            held: 0,
            orphans: Vec::new(),
            ident: 0,
        };
        neighbours.rebase(tables);
        neighbours
    }

    /// Goes over to new tables: what is known about neighbours that stay is kept. Frames that wait for one
    /// that does not come out of the next [`Neighbours::dispatch`] as dropped.
    pub fn rebase(&mut self, tables: &Tables) {
        let old = std::mem::take(&mut self.entries);
        let mut old: HashMap<_, _> = old.into_iter().map(|entry| ((entry.port, entry.ip), entry)).collect();
        self.by_address.clear();
        self.hops.clear();
        for hop in tables.hops() {
            let key = (hop.port, hop.neighbour);
            let entry = *self.by_address.entry(key).or_insert_with(|| {
                let fresh = || Entry::new(hop.port, hop.neighbour);
                self.entries.push(old.remove(&key).unwrap_or_else(fresh));
                self.entries.len() - 1
            });
            self.hops.push(Hop { mac: Mac::ZERO, use_: Use::None, entry: entry as u32 });
        }
        for gone in old.into_values() {
            self.orphans.extend(gone.held);
        }
        let due = |(at, entry): (usize, &Entry)| Some((entry.deadline_ns?, at));
        self.deadlines = self.entries.iter().enumerate().filter_map(due).collect();
        for hop in &mut self.hops {
            hop.publish(&self.entries[hop.entry as usize]);
        }
    }

    /// The MAC address of a next hop's neighbour.
    #[inline(always)]
    pub(crate) fn resolve(&mut self, next_hop: u16, now_ns: u64) -> Option<Mac> {
        let hop = self.hops.get(usize::from(next_hop))?;
        match hop.use_ {
            Use::Free => Some(hop.mac),
            Use::Probe => Some(self.probe(hop.entry as usize, now_ns)),
            Use::None => None,
        }
    }

    /// The next identification for outer IPv4 headers that may be fragmented (RFC 6864).
    #[inline(always)]
    pub(crate) fn ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    /// A stale address is used: it is good for now, and asked about.
    #[cold]
    fn probe(&mut self, at: usize, now_ns: u64) -> Mac {
        let mac = self.entries[at].mac;
        self.set(at, State::Probing(0), mac, Some(now_ns));
        mac
    }

    /// Lets an encapsulated frame wait; gives it back when there is no room or no hope.
    pub(crate) fn hold(&mut self, next_hop: u16, frame: Frame, now_ns: u64) -> Result<(), Frame> {
        let Some(at) = self.hops.get(usize::from(next_hop)).map(|hop| hop.entry as usize) else {
            return Err(frame);
        };
        let (limits, held) = (self.limits, self.held);
        let entry = &mut self.entries[at];
        let full = held >= limits.held || entry.held.len() >= limits.held_per_neighbour;
        if full || entry.state == State::Failed {
            return Err(frame);
        }
        entry.held.push(frame);
        self.held += 1;
        if self.entries[at].state == State::Idle {
            self.set(at, State::Asking(0), Mac::ZERO, Some(now_ns));
        }
        Ok(())
    }

    /// Takes an ARP or neighbour discovery frame from an underlay ([`crate::Verdict::Local`]).
    pub fn process(&mut self, tables: &Tables, pool: &mut Pool, mut frame: Frame, now_ns: u64) -> Processed {
        let heard = match message::hear(tables, pool, &frame) {
            Ok(heard) => heard,
            Err(why) => {
                pool.free(frame);
                return Processed::Dropped(why);
            }
        };
        let learnt = self.learn(&heard, now_ns);
        if heard.asks && message::answer(tables, pool, &mut frame, &heard) {
            return Processed::Reply(frame);
        }
        pool.free(frame);
        Processed::Dropped(if learnt { DropReason::Answered } else { DropReason::NotForUs })
    }

    /// True if a frame for [`Neighbours::process`] speaks of a neighbour that the tables need: other workers
    /// of the same underlay, which keep neighbours of their own, want to hear it too.
    pub fn concerns(&self, tables: &Tables, pool: &Pool, frame: &Frame) -> bool {
        message::hear(tables, pool, frame)
            .is_ok_and(|heard| self.by_address.contains_key(&(heard.port, heard.sender)))
    }

    /// Learns from a frame that another worker processed; frees it. Count it under the reason.
    pub fn overhear(&mut self, tables: &Tables, pool: &mut Pool, frame: Frame, now_ns: u64) -> DropReason {
        let heard = message::hear(tables, pool, &frame);
        pool.free(frame);
        match heard {
            Ok(heard) if self.learn(&heard, now_ns) => DropReason::Answered,
            Ok(_) => DropReason::NotForUs,
            Err(why) => why,
        }
    }

    /// Updates the entry of the sender, if there is one.
    fn learn(&mut self, heard: &Heard, now_ns: u64) -> bool {
        let found = self.by_address.get(&(heard.port, heard.sender)).copied();
        let (Some(at), Some(mac)) = (found, heard.mac) else { return false };
        let entry = &self.entries[at];
        let asked = matches!(entry.state, State::Asking(1..) | State::Probing(1..));
        if heard.answers && asked {
            let until = now_ns.saturating_add(self.limits.reachable_ns);
            self.set(at, State::Reachable, mac, Some(until));
        } else if entry.mac != mac && (heard.to_us || entry.mac != Mac::ZERO) {
            // True for now; the next frame that uses it has it confirmed (RFC 4861, clause 7.2.3).
            self.set(at, State::Stale, mac, None);
        } else {
            return true;
        }
        if !self.entries[at].held.is_empty() {
            self.schedule(at, Some(now_ns));
        }
        true
    }

    /// Hands out what is due: requests, frames whose neighbour was found, frames that waited too long.
    pub fn dispatch(
        &mut self,
        tables: &Tables,
        pool: &mut Pool,
        now_ns: u64,
        out: &mut impl FnMut(&mut Pool, Emitted),
    ) {
        for frame in self.orphans.drain(..) {
            self.held -= 1;
            out(pool, Emitted::Dropped(frame, DropReason::RuleGone));
        }
        while let Some((due_ns, at)) = self.deadlines.first().copied() {
            if due_ns > now_ns {
                break;
            }
            self.schedule(at, None);
            self.turn(tables, pool, at, now_ns, out);
        }
    }

    /// One entry's deadline has come.
    fn turn(
        &mut self,
        tables: &Tables,
        pool: &mut Pool,
        at: usize,
        now_ns: u64,
        out: &mut impl FnMut(&mut Pool, Emitted),
    ) {
        let mac = self.entries[at].mac;
        let again = Some(now_ns.saturating_add(self.limits.retransmit_ns));
        match self.entries[at].state {
            State::Reachable | State::Stale if !self.entries[at].held.is_empty() => {
                self.release(pool, at, now_ns, out);
            }
            State::Reachable => self.set(at, State::Stale, mac, None),
            State::Asking(sent) | State::Probing(sent) if sent >= self.limits.requests => {
                self.set(at, State::Failed, Mac::ZERO, again);
                self.refuse(pool, at, out);
            }
            State::Asking(sent) => {
                self.ask(tables, pool, at, out);
                self.set(at, State::Asking(sent + 1), mac, again);
            }
            State::Probing(sent) => {
                self.ask(tables, pool, at, out);
                self.set(at, State::Probing(sent + 1), mac, again);
            }
            State::Failed => self.set(at, State::Idle, Mac::ZERO, None),
            State::Idle | State::Stale => {}
        }
    }

    fn ask(&self, tables: &Tables, pool: &mut Pool, at: usize, out: &mut impl FnMut(&mut Pool, Emitted)) {
        let entry = &self.entries[at];
        // Without a free frame the request is skipped; it is made again in a moment.
        if let Some(request) = message::request(tables, pool, entry.port, entry.ip, entry.mac) {
            out(pool, Emitted::Generated(request));
        }
    }

    /// Hands out the frames that waited. A stale address counts as used by that.
    fn release(&mut self, pool: &mut Pool, at: usize, now_ns: u64, out: &mut impl FnMut(&mut Pool, Emitted)) {
        let entry = &mut self.entries[at];
        let mac = entry.mac;
        let frames = std::mem::take(&mut entry.held);
        self.held -= frames.len();
        for mut frame in frames {
            set_destination(pool, &mut frame, mac);
            out(pool, Emitted::Released(frame));
        }
        match self.entries[at].state {
            State::Reachable => self.schedule(at, Some(now_ns.saturating_add(self.limits.reachable_ns))),
            _ => self.set(at, State::Probing(0), mac, Some(now_ns)),
        }
    }

    /// Gives up on the frames that waited.
    fn refuse(&mut self, pool: &mut Pool, at: usize, out: &mut impl FnMut(&mut Pool, Emitted)) {
        let frames = std::mem::take(&mut self.entries[at].held);
        self.held -= frames.len();
        for frame in frames {
            out(pool, Emitted::Dropped(frame, DropReason::Unresolved));
        }
    }

    /// When [`Neighbours::dispatch`] has something to do next, ns; 0 when it has now.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        if !self.orphans.is_empty() {
            return Some(0);
        }
        self.deadlines.first().map(|(due_ns, _)| *due_ns)
    }

    /// Frames that wait.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Gives back every frame that waits, when the worker stops.
    pub fn drain(&mut self, out: &mut impl FnMut(Frame)) {
        let waiting = self.entries.iter_mut().flat_map(|entry| entry.held.drain(..));
        waiting.chain(self.orphans.drain(..)).for_each(out);
        self.held = 0;
    }

    fn set(&mut self, at: usize, state: State, mac: Mac, deadline_ns: Option<u64>) {
        let entry = &mut self.entries[at];
        (entry.state, entry.mac) = (state, mac);
        self.schedule(at, deadline_ns);
        self.publish(at);
    }

    fn schedule(&mut self, at: usize, deadline_ns: Option<u64>) {
        let entry = &mut self.entries[at];
        if let Some(due_ns) = entry.deadline_ns {
            self.deadlines.remove(&(due_ns, at));
        }
        entry.deadline_ns = deadline_ns;
        if let Some(due_ns) = deadline_ns {
            self.deadlines.insert((due_ns, at));
        }
    }

    /// Copies an entry's address to the next hops that use it.
    fn publish(&mut self, at: usize) {
        let entry = &self.entries[at];
        self.hops.iter_mut().filter(|hop| hop.entry as usize == at).for_each(|hop| hop.publish(entry));
    }
}

impl Hop {
    fn publish(&mut self, entry: &Entry) {
        self.mac = entry.mac;
        self.use_ = match entry.state {
            State::Reachable | State::Probing(_) => Use::Free,
            State::Stale => Use::Probe,
            State::Idle | State::Asking(_) | State::Failed => Use::None,
        };
    }
}

impl Entry {
    fn new(port: u16, ip: IpAddr) -> Entry {
        Entry { port, ip, mac: Mac::ZERO, state: State::Idle, deadline_ns: None, held: Vec::new() }
    }
}
