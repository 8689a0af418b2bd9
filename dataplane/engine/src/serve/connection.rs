//! One connection: a socket, its session, and whether there is anything to do for it.

use std::io::ErrorKind;
use std::os::fd::BorrowedFd;

use block::{Lba, Op, VolumeId};
use frame::IoPool;
use session::nbd::{Slices, Wait};
use trace::Stage;

use super::session::{Guest, Over, Session};
use super::stream::Stream;
use crate::clock::Stopwatch;
use session::nvme_tcp::Subsystem;

/// Turns without input after which a socket is left to the wait point.
const HOT_TURNS: u32 = 64;
/// A receive of less has emptied the socket, whether what came had to be decrypted or not: there was room for more.
const EMPTIED_BYTES: usize = super::RECEIVE_BYTES / 4;

/// A connection whose handshake is done, on its way to the worker that owns its volume.
#[derive(Debug)]
pub struct Arrival {
    /// The socket.
    pub stream: Stream,
    /// Who it is, as the handshake left it.
    pub guest: Guest,
    /// What was received and is not consumed.
    pub rest: Vec<u8>,
}

/// A command that asks for credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub op: Op,
    pub lba: Lba,
    pub bytes: u32,
}

/// How a connection stands with the credits of one volume.
#[derive(Clone, Copy, Debug, Default)]
struct Credit {
    /// Paid for, and not yet used.
    granted: Option<Ask>,
    /// A ticket waits in the shaper.
    waiting: bool,
    /// The volume is frozen, and something waits for that.
    held: bool,
}

/// How a connection stands with the credits of its volumes: of an NBD client one, of an NVMe host one for each
/// namespace that it uses. Volumes of which there is nothing to say are not in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Credits(Vec<(VolumeId, Credit)>);

impl Credits {
    /// Uses what was granted, if it is for this command. It is kept while another one comes first; there is
    /// never more than one for a volume.
    pub fn take(&mut self, volume: VolumeId, ask: Ask) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.change(volume, |credit| credit.granted.take_if(|granted| *granted == ask).is_some())
    }

    /// A ticket for `volume` waits.
    pub fn waits(&self, volume: VolumeId) -> bool {
        self.0.iter().any(|(other, credit)| *other == volume && credit.waiting)
    }

    /// The volumes for which a ticket waits.
    pub fn waiting(&self) -> impl Iterator<Item = VolumeId> {
        self.0.iter().filter(|(_, credit)| credit.waiting).map(|(volume, _)| *volume)
    }

    /// Something waits for credits, or for a frozen volume.
    pub fn waits_or_held(&self) -> bool {
        self.0.iter().any(|(_, credit)| credit.waiting || credit.held)
    }

    /// A ticket was parked.
    pub fn wait(&mut self, volume: VolumeId) {
        self.change(volume, |credit| credit.waiting = true);
    }

    /// Whether something waits for a frozen volume.
    pub fn hold(&mut self, volume: VolumeId, held: bool) {
        if held || !self.0.is_empty() {
            self.change(volume, |credit| credit.held = held);
        }
    }

    /// What was asked for is not wanted any more. True if its ticket is to be taken back.
    pub fn withdraw(&mut self, volume: VolumeId) -> bool {
        if self.0.is_empty() {
            return false;
        }
        self.change(volume, |credit| {
            credit.granted = None;
            std::mem::take(&mut credit.waiting)
        })
    }

    /// The ticket is lost.
    pub fn ask_again(&mut self, volume: VolumeId) {
        self.change(volume, |credit| credit.waiting = false);
    }

    /// The ticket was paid for.
    pub fn grant(&mut self, volume: VolumeId, ask: Ask) {
        self.change(volume, |credit| (credit.granted, credit.waiting) = (Some(ask), false));
    }

    /// The volume is gone.
    pub fn forget(&mut self, volume: VolumeId) {
        self.0.retain(|(other, _)| *other != volume);
    }

    fn change<T>(&mut self, volume: VolumeId, change: impl FnOnce(&mut Credit) -> T) -> T {
        let at = self.0.iter().position(|(other, _)| *other == volume);
        let at = at.unwrap_or_else(|| {
            self.0.push((volume, Credit::default()));
            self.0.len() - 1
        });
        let credit = &mut self.0[at].1;
        let outcome = change(credit);
        if credit.granted.is_none() && !credit.waiting && !credit.held {
            self.0.swap_remove(at);
        }
        outcome
    }
}

/// What a receive brought.
#[derive(Debug)]
pub(super) enum Received {
    Bytes(usize),
    Nothing,
    /// It was not tried: the wait point says when there is something.
    Left,
    /// The connection is over, for this reason.
    Over(String),
}

pub(super) struct Connection {
    /// `None` once it is closed; the session then waits for its last answers.
    stream: Option<Stream>,
    pub session: Session,
    rest: Vec<u8>,
    pub credits: Credits,
    /// Payload of it that its volume's sum contains.
    counted_bytes: usize,
    /// Payload that it may hold and take more while it waits for credits.
    waiting_bytes_max: usize,
    /// In the list of active connections.
    pub listed: bool,
    /// In the list of those that wait for memory.
    pub starving: bool,
    /// There was no memory for its answers.
    pub starved: bool,
    /// There was no memory for what was received.
    short: bool,
    /// The socket may have input.
    readable: bool,
    /// The socket may have room.
    writable: bool,
    quiet_turns: u32,
    /// When what is in `rest` was received, ns.
    rest_ns: u64,
    /// What holds its requests up, and since when.
    pub blocked: Option<(Stage, u64)>,
    /// Requests of it are or were followed.
    pub followed: bool,
    /// It copies its volume, as that one's copy of this number.
    pub copy: Option<u64>,
}

impl Connection {
    /// `rest` was received until `now_ns`.
    pub fn new(
        stream: Stream,
        session: Session,
        rest: Vec<u8>,
        waiting_bytes_max: usize,
        now_ns: u64,
    ) -> Connection {
        Connection {
            stream: Some(stream),
            session,
            rest,
            credits: Credits::default(),
            counted_bytes: 0,
            waiting_bytes_max,
            listed: false,
            starving: false,
            starved: false,
            short: false,
            readable: true,
            writable: true,
            quiet_turns: 0,
            rest_ns: now_ns,
            blocked: None,
            followed: false,
            copy: None,
        }
    }

    /// The volume that it came for; of an NVMe host, the place of its subsystem.
    pub fn volume(&self) -> VolumeId {
        self.session.volume()
    }

    /// What its worker waits for.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(Stream::fd)
    }

    /// It has come to another worker: it is in none of the lists there, and its socket may be ready.
    pub fn arrive(&mut self) {
        self.listed = false;
        self.feed();
        self.wake();
    }

    /// The wait point found it ready, for whatever.
    pub fn wake(&mut self) {
        (self.readable, self.writable, self.quiet_turns) = (true, true, 0);
    }

    /// Brings its volume's sum of payload up to date.
    pub fn account(&mut self, volume_bytes: &mut usize) {
        let held_bytes = self.session.held_bytes();
        *volume_bytes = *volume_bytes + held_bytes - self.counted_bytes;
        self.counted_bytes = held_bytes;
    }

    /// It cannot go on before memory comes back.
    pub fn lacks_memory(&self) -> bool {
        self.starved || self.short
    }

    /// Memory may have come back.
    pub fn feed(&mut self) {
        (self.starving, self.starved, self.short) = (false, false, false);
    }

    /// At most one receive; what comes goes into the session, what that does not take stays here. A socket that was
    /// found empty is tried again only as long as there are `tries`.
    ///
    /// Where requests are followed, they are received when the kernel has handed them over; else with their turn.
    pub fn receive(
        &mut self,
        scratch: &mut [u8],
        pool: &mut IoPool,
        tries: &mut u32,
        watch: &Stopwatch,
        follows: bool,
    ) -> Received {
        if !self.wants_input() {
            return Received::Nothing;
        }
        if !self.rest.is_empty() {
            return self.process_rest(pool);
        }
        let Some(stream) = self.stream.as_mut().filter(|_| self.readable) else {
            return Received::Nothing;
        };
        if self.quiet_turns > 0 {
            let Some(left) = tries.checked_sub(1) else {
                self.readable = false;
                return Received::Left;
            };
            *tries = left;
        }
        let count = match stream.receive(scratch) {
            Ok(0) => return Received::Over("the client has closed it".to_owned()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.quiet_turns = 0;
                return Received::Nothing;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.quiet_turns += 1;
                self.readable = self.quiet_turns < HOT_TURNS;
                return Received::Nothing;
            }
            Err(error) => return Received::Over(error.to_string()),
        };
        self.quiet_turns = u32::from(count < EMPTIED_BYTES);
        self.rest_ns = if follows { watch.now_ns() } else { watch.turn_ns() };
        match self.session.process_bytes(&scratch[..count], pool, self.rest_ns) {
            Ok(taken) => {
                self.rest.extend_from_slice(&scratch[taken..count]);
                self.short = taken < count && self.session.wants_input();
                Received::Bytes(count)
            }
            Err(why) => Received::Over(why.to_string()),
        }
    }

    fn process_rest(&mut self, pool: &mut IoPool) -> Received {
        match self.session.process_bytes(&self.rest, pool, self.rest_ns) {
            Ok(taken) => {
                self.rest.drain(..taken);
                self.short = !self.rest.is_empty() && self.session.wants_input();
                if taken == 0 { Received::Nothing } else { Received::Bytes(taken) }
            }
            Err(why) => Received::Over(why.to_string()),
        }
    }

    /// What its requests wait for after a step.
    pub fn set_waits(&mut self, waits: Wait, now_ns: u64) {
        self.starved = waits == Wait::Memory;
        let stage = match waits {
            Wait::Nothing => None,
            Wait::Credits => Some(Stage::Park),
            Wait::Memory => Some(Stage::Memory),
        };
        let since_ns =
            |stage| self.blocked.filter(|(was, _)| *was == stage).map_or(now_ns, |(_, since_ns)| since_ns);
        self.blocked = stage.map(|stage| (stage, since_ns(stage)));
    }

    /// At most one send. Returns how many bytes left.
    pub fn send(&mut self, pool: &mut IoPool) -> usize {
        if !(self.writable && self.has_output()) {
            return 0;
        }
        let Some(stream) = self.stream.as_mut() else { return 0 };
        let mut slices = Slices::new();
        self.session.dispatch_bytes(pool, &mut slices);
        let sent = stream.send(&slices);
        drop(slices);
        match sent {
            Ok(count) => {
                self.session.sent(count, pool);
                count
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.writable = error.kind() == ErrorKind::Interrupted;
                0
            }
            Err(_gone) => {
                self.end(pool);
                0
            }
        }
    }

    /// Closes the socket; the session lets go of all that is not under way.
    pub fn end(&mut self, pool: &mut IoPool) {
        self.stream = None;
        self.rest = Vec::new();
        self.session.abort(pool);
    }

    /// More input can be taken. What waits for credits leaves the rest in the socket, so that the hosts of a volume
    /// over its limit do not fill the memory that others need.
    pub fn wants_input(&self) -> bool {
        let is_full = self.session.unasked_bytes() >= self.waiting_bytes_max;
        self.session.wants_input() && !(is_full && self.credits.waits_or_held())
    }

    /// Something is to be sent.
    pub fn has_output(&self) -> bool {
        self.session.has_output() || self.stream.as_ref().is_some_and(Stream::has_output)
    }

    /// Ends a client that stopped half way; see [`Session::expire`] and [`Stream::expire`].
    pub fn expire(&mut self, subsystem: Option<&Subsystem>, now_ns: u64) -> Result<(), Over> {
        if let Some(stream) = &mut self.stream {
            stream.expire(now_ns)?;
        }
        if !self.wants_input() && !self.session.has_output() {
            self.session.excuse(now_ns);
        }
        self.session.expire(subsystem, now_ns)
    }

    /// Nothing is left of it.
    pub fn is_over(&self) -> bool {
        self.session.is_finished() && !self.stream.as_ref().is_some_and(Stream::has_output)
    }

    /// The next turn has something to do for it that no descriptor and no answer announces: something to send, or, if
    /// it `goes_on`, something to take or to hand out.
    pub fn is_active(&self, goes_on: bool) -> bool {
        if self.stream.is_none() {
            return false;
        }
        let has_input = self.readable || !self.rest.is_empty();
        let input = has_input && self.wants_input() && !self.lacks_memory();
        (goes_on && (input || self.session.wants_step())) || (self.writable && self.has_output())
    }
}
