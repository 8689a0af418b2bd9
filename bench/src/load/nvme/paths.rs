//! The ways to one volume, and which of them is taken.
//!
//! The best way is one that is optimized, else one that is not; as long as it is no worse than the others, the
//! one in use stays in use. A command that a way could not carry (a status of type 3h, or its connection is
//! lost) is asked again on the way that is best then. Ways that are lost are tried again and again, by a thread
//! of their own, so that the others go on meanwhile.
//!
//! Invariants: each request is under way on one path at most; what was under way on a lost path is told as
//! [`Ending::Again`] once.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use wire::nvme::{Command, IoOpcode, StatusCode};

use super::Plan;
use super::controller::Controller;
use super::pages::rank;
use super::queue::{Answer, Payload};
use crate::Outcome;
use crate::load::{Answer as Told, Ending, Op, Request};

/// Time between two looks at the admin queues.
const LOOK_NS: u64 = 1_000_000;
/// Time between two attempts to get a lost path back.
const RETRY_NS: u64 = 200_000_000;
/// For how long a path is not taken that has failed a command without saying why.
const SUSPECT_NS: u64 = 100_000_000;

#[derive(Debug)]
enum State {
    Up(Box<Controller>),
    Down { retry_ns: u64, attempt: Option<Receiver<Result<Controller, String>>> },
}

#[derive(Debug)]
struct Path {
    address: String,
    state: State,
    suspect_until_ns: u64,
    /// Why it is down.
    why: String,
}

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::load) struct Paths {
    plan: Plan,
    paths: Vec<Path>,
    current: Option<usize>,
    /// Since when there is no path.
    none_since_ns: Option<u64>,
    loss_ns: u64,
    look_ns: u64,
    /// By connection: requests that were under way on a path that is lost.
    orphans: Vec<Vec<u32>>,
    scratch: Vec<u8>,
    answers: Vec<Answer>,
    /// What happened, for who watches.
    events: Vec<String>,
}

impl Paths {
    /// Connects over all `addresses`; one way is enough to begin. Without any for `loss`, it is over.
    pub fn open(addresses: &[String], plan: Plan, loss: Duration) -> Outcome<Paths> {
        let mut paths = Paths {
            orphans: vec![Vec::new(); plan.connections as usize],
            plan,
            paths: Vec::new(),
            current: None,
            none_since_ns: None,
            loss_ns: loss.as_nanos() as u64,
            look_ns: 0,
            scratch: vec![0; super::super::RECEIVE_BYTES],
            answers: Vec::new(),
            events: Vec::new(),
        };
        for address in addresses {
            let (state, why) = match Controller::connect(address, &paths.plan) {
                Ok(controller) => (State::Up(Box::new(controller)), String::new()),
                Err(why) => (State::Down { retry_ns: 0, attempt: None }, why),
            };
            let address = address.clone();
            paths.paths.push(Path { address, state, suspect_until_ns: 0, why });
        }
        if paths.first().is_none() {
            return Err(paths.reasons());
        }
        for at in 1..paths.paths.len() {
            paths.check_same(at)?;
        }
        paths.choose(0);
        Ok(paths)
    }

    /// Size of the volume in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.first().map_or(0, |one| one.namespace.blocks << one.namespace.block_bytes_log2)
    }

    fn first(&self) -> Option<&Controller> {
        self.paths.iter().find_map(|path| if let State::Up(one) = &path.state { Some(&**one) } else { None })
    }

    /// What happened since this was called last.
    pub fn events(&mut self) -> impl Iterator<Item = String> {
        self.events.drain(..)
    }

    /// Asks; false if that is not possible now.
    pub fn ask(&mut self, connection: usize, slot: u32, request: &Request, data: &[u8]) -> bool {
        let Some(State::Up(controller)) = self.current.map(|at| &mut self.paths[at].state) else {
            return false;
        };
        let shift = controller.namespace.block_bytes_log2;
        let queue = &mut controller.queues[connection].queue;
        if !queue.has_room() {
            return false;
        }
        let (opcode, payload) = match request.op {
            Op::Read => (IoOpcode::READ, Payload::ToHost(request.bytes)),
            Op::Write => (IoOpcode::WRITE, Payload::FromHost(data)),
            Op::Flush => (IoOpcode::FLUSH, Payload::None),
        };
        let namespace = self.plan.options.namespace;
        let mut command = Command { opcode: opcode.0, namespace, ..Command::default() };
        if request.op != Op::Flush {
            let lba = request.offset_bytes >> shift;
            let blocks_less_one = (request.bytes >> shift) - 1;
            // NVM command set clause 3.2.6: "Force Unit Access", bit 30.
            let fua = u32::from(request.fua && request.op == Op::Write) << 30;
            command.dwords_10_15 = [lba as u32, (lba >> 32) as u32, blocks_less_one | fua, 0, 0, 0];
        }
        queue.ask(slot, command, payload);
        true
    }

    /// Sends and receives for one connection of the load, on all ways; `payload` shows what a slot writes.
    pub fn poll<'p>(
        &mut self,
        connection: usize,
        payload: impl Fn(u32) -> &'p [u8],
        now_ns: u64,
        told: &mut Vec<Told>,
    ) {
        for at in 0..self.paths.len() {
            let State::Up(controller) = &mut self.paths[at].state else { continue };
            let line = &mut controller.queues[connection];
            if line.queue.under_way() == 0 {
                continue;
            }
            let mut answers = std::mem::take(&mut self.answers);
            let step = line.send().and_then(|()| line.receive(&mut self.scratch, &payload, &mut answers));
            for Answer { slot, completion, payload } in answers.drain(..) {
                let ending = match completion.status {
                    StatusCode::SUCCESS => Ending::Done,
                    // Base clause 3.4: a status of type 3h says something of the path, not of the command.
                    status if status.is_path_related() => {
                        self.blame(at, status, now_ns);
                        Ending::Again
                    }
                    status => Ending::Failed(status.0.into()),
                };
                told.push(Told { slot, ending, payload });
            }
            self.answers = answers;
            if let Err(why) = step {
                self.lose(at, why, now_ns);
            }
        }
        let again = |slot| Told { slot, ending: Ending::Again, payload: Vec::new() };
        told.extend(self.orphans[connection].drain(..).map(again));
    }

    /// Looks after the paths; an error if there has been none for too long.
    pub fn step(&mut self, now_ns: u64) -> Outcome {
        if now_ns < self.look_ns {
            return Ok(());
        }
        self.look_ns = now_ns + LOOK_NS;
        for at in 0..self.paths.len() {
            match &mut self.paths[at].state {
                State::Up(controller) => {
                    if let Err(why) = controller.step(now_ns, &mut self.scratch) {
                        self.lose(at, why, now_ns);
                    }
                }
                State::Down { .. } => self.revive(at, now_ns),
            }
        }
        self.choose(now_ns);
        match self.none_since_ns {
            Some(since_ns) if now_ns - since_ns >= self.loss_ns => Err(self.reasons()),
            _ => Ok(()),
        }
    }

    fn revive(&mut self, at: usize, now_ns: u64) {
        let path = &mut self.paths[at];
        let State::Down { retry_ns, attempt } = &mut path.state else { return };
        let Some(answer) = attempt else {
            if now_ns >= *retry_ns {
                let (sender, receiver) = channel();
                let (address, plan) = (path.address.clone(), self.plan.clone());
                // Who asked may have gone meanwhile; then nobody wants to know.
                std::thread::spawn(move || sender.send(Controller::connect(&address, &plan)).ok());
                *attempt = Some(receiver);
            }
            return;
        };
        match answer.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(Ok(mut controller)) => {
                controller.begin(now_ns);
                path.state = State::Up(Box::new(controller));
                match self.check_same(at) {
                    Ok(()) => self.events.push(format!("{} is back", self.paths[at].address)),
                    Err(why) => self.lose(at, why, now_ns),
                }
            }
            failed => {
                let gone = "the thread that connects has died";
                path.why = failed.map_or(gone.to_owned(), |outcome| outcome.err().unwrap_or_default());
                (*retry_ns, *attempt) = (now_ns + RETRY_NS, None);
            }
        }
    }

    /// A path that leads elsewhere would be worse than none.
    fn check_same(&self, at: usize) -> Outcome {
        let (Some(first), State::Up(this)) = (self.first(), &self.paths[at].state) else { return Ok(()) };
        let what =
            |one: &Controller| (one.namespace.blocks, one.namespace.block_bytes_log2, one.namespace.nguid);
        if what(first) == what(this) {
            return Ok(());
        }
        let address = &self.paths[at].address;
        Err(format!("{address} leads to another volume: size or NGUID are not the same"))
    }

    /// A command has failed for a reason that lies in the path.
    fn blame(&mut self, at: usize, status: StatusCode, now_ns: u64) {
        let path = &mut self.paths[at];
        let State::Up(controller) = &mut path.state else { return };
        controller.doubt(status);
        let is_news = path.suspect_until_ns <= now_ns;
        // Where the ANA state has changed, the state says when the path is good again.
        if rank(controller.state).is_some() {
            path.suspect_until_ns = now_ns + SUSPECT_NS;
        }
        if is_news {
            self.events.push(format!("{} answers: {status}", path.address));
        }
        self.choose(now_ns);
    }

    fn lose(&mut self, at: usize, why: String, now_ns: u64) {
        let path = &mut self.paths[at];
        self.events.push(format!("{} is lost: {why}", path.address));
        path.why = why;
        let down = State::Down { retry_ns: now_ns + RETRY_NS, attempt: None };
        if let State::Up(controller) = std::mem::replace(&mut path.state, down) {
            for (orphans, line) in self.orphans.iter_mut().zip(&controller.queues) {
                orphans.extend(line.queue.unanswered());
            }
        }
        self.choose(now_ns);
    }

    fn choose(&mut self, now_ns: u64) {
        let place = |(at, path): (usize, &Path)| match &path.state {
            State::Up(one) if path.suspect_until_ns <= now_ns => {
                Some((rank(one.state)?, self.current != Some(at), at))
            }
            _ => None,
        };
        let best = self.paths.iter().enumerate().filter_map(place).min();
        let chosen = best.map(|(.., at)| at);
        if let Some(Path { address, state: State::Up(one), .. }) = chosen.map(|at| &self.paths[at])
            && chosen != self.current
            && self.paths.len() > 1
        {
            self.events.push(format!("{address} is the way now ({:?})", one.state));
        }
        self.current = chosen;
        self.none_since_ns = if chosen.is_some() { None } else { self.none_since_ns.or(Some(now_ns)) };
    }

    fn reasons(&self) -> String {
        let one = |path: &Path| match &path.state {
            State::Up(one) => format!("{}: {:?}", path.address, one.state),
            State::Down { .. } => format!("{}: {}", path.address, path.why),
        };
        let reasons: Vec<String> = self.paths.iter().map(one).collect();
        format!("no way to {}: {}", self.plan.subsystem, reasons.join("; "))
    }
}
