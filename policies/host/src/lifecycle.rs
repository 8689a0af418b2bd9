//! The life of policies: pushed, shadowed, activated, rolled back.
//!
//! Every change of what is active goes through [`Shared::install`]: new instances are made beside the running ones,
//! then the locks of the kind's places on all seats are taken, state goes from the old instances to the new, and all
//! swap or none does; the old ones are taken apart when decisions go on again. A seat that is idle is swapped like a
//! busy one, so when the call returns, every policy thread runs the new version.
//!
//! Lock order: control, then places by number of their seat, then the log. Nobody waits for control while holding a
//! place.

pub mod library;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use thiserror::Error;
use verdict::Kind;

use crate::engine::Engine;
use crate::fault::{Fault, FaultClass};
use crate::guest::{Guest, State};
use crate::log::{self, Log, LogError, LogOptions, Record};
use crate::policy::{Gate, Policy};
use crate::seat::{Live, Place, Places, Seat, lock};
use crate::shadow::Shadow;
use crate::status::{Counters, KindStatus, LifeEvent, PolicyStatus, ShadowStatus, Status, wall_ms};

/// Events that are kept in memory.
const EVENTS_MAX: usize = 256;

/// How policies are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// So many faults ...
    pub faults_max: u64,
    /// ... within so many decisions roll a policy back.
    pub fault_window: u64,
    /// A policy's state is kept each so many decisions.
    pub checkpoint_every: u32,
    /// Versions that can be gone back to.
    pub previous_max: usize,
    /// Where decisions are logged, if they are.
    pub log: Option<LogOptions>,
}

impl Default for Options {
    fn default() -> Options {
        Options { faults_max: 5, fault_window: 100, checkpoint_every: 256, previous_max: 8, log: None }
    }
}

/// What a new version goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From what the active one has come to; if that is refused, the active one stays.
    Carry,
    /// From nothing.
    Fresh,
}

/// Why a version does not become active, or a shadow.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A new instance does not start; the old version goes on.
    #[error(
        "{policy} is not activated, and {stays} goes on: {fault}; mend it, or where the state is the matter activate it \
         with --fresh"
    )]
    Refused {
        /// The new version.
        policy: String,
        /// What stays active.
        stays: String,
        /// Why.
        fault: Fault,
    },
    /// It is not there any more.
    #[error("{0} was removed meanwhile; push it again")]
    Removed(String),
    /// There is nothing to go back to.
    #[error("the native default decides about {0} already; there is nothing to go back to")]
    NothingBefore(Kind),
}

/// What an activation or a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// What is active now.
    pub active: Arc<str>,
    /// What was.
    pub before: Arc<str>,
    /// Policy threads that run it: all there are.
    pub seats: usize,
    /// State that was handed over, of all seats.
    pub state_bytes: usize,
    /// How long decisions had to wait.
    pub held_ns: u64,
}

/// All policies of a control plane; clones share them.
#[derive(Clone, Debug)]
pub struct Policies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    engine: Engine,
    gate: Gate,
    options: Options,
    native: Arc<str>,
    control: Mutex<Control>,
    log: Mutex<Journal>,
    decisions: AtomicU64,
    kinds: [KindShared; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct KindShared {
    counters: Counters,
    /// Decisions of the active policy that failed, by number.
    faults: Mutex<VecDeque<u64>>,
}

#[derive(Debug, Default)]
struct Journal {
    log: Option<Log>,
    errors: u64,
    last_error: Option<String>,
}

impl Journal {
    fn failed(&mut self, error: &LogError) {
        self.errors += 1;
        self.last_error = Some(error.to_string());
    }
}

#[derive(Debug, Default)]
struct Control {
    library: Vec<Arc<Policy>>,
    courses: [Course; Kind::ALL.len()],
    seats: Vec<Weak<Places>>,
    next_seat: u32,
    events: VecDeque<LifeEvent>,
}

#[derive(Debug, Default)]
struct Course {
    active: Option<Arc<Policy>>,
    previous: Vec<Version>,
    shadow: Option<Arc<Policy>>,
    generation: u64,
    rolled_back: Option<String>,
    /// Why faults rolled a version back, until somebody has been told.
    untold: Option<String>,
}

/// A version that was active, with what each seat had come to.
#[derive(Debug)]
struct Version {
    policy: Arc<Policy>,
    states: BTreeMap<u32, State>,
}

/// Enough faults to go back.
#[derive(Debug)]
pub(crate) struct Trouble {
    generation: u64,
    why: String,
}

/// Where the state of an installed version comes from.
enum Source<'a> {
    Active,
    ActiveElse(&'a BTreeMap<u32, State>),
    Kept(&'a BTreeMap<u32, State>),
    Nothing,
}

/// What an installation found and did.
struct Installed {
    before: BTreeMap<u32, State>,
    seats: usize,
    state_bytes: usize,
    held_ns: u64,
}

impl Policies {
    /// None yet: the native defaults decide.
    pub fn new(engine: Engine, gate: Gate, options: Options) -> Result<Policies, LogError> {
        let mut journal = Journal::default();
        let mut last = 0;
        if let Some(options) = &options.log {
            journal.log = Some(Log::open(options.clone())?);
            // Numbers go on, so that who is told one finds one decision. A log that cannot be read stops nobody.
            match log::last_number(&options.folder) {
                Ok(number) => last = number,
                Err(error) => journal.failed(&error),
            }
        }
        let shared = Shared {
            engine,
            gate,
            options,
            native: Arc::from("native"),
            control: Mutex::default(),
            log: Mutex::new(journal),
            decisions: AtomicU64::new(last),
            kinds: Default::default(),
        };
        Ok(Policies { shared: Arc::new(shared) })
    }

    /// A place for one policy thread, with an instance of each active policy.
    pub fn seat(&self) -> Seat {
        let shared = self.shared.clone();
        let mut control = lock(&shared.control);
        control.next_seat += 1;
        let places = Kind::ALL.map(|kind| {
            let course = &control.courses[kind as usize];
            Place {
                // One that does not start now starts, or fails and is counted, with the first decision.
                active: course.active.clone().map(|policy| Live::waiting(policy, None)),
                shadow: course.shadow.clone().map(|policy| Shadow::new(policy, None, None)),
                generation: course.generation,
            }
        });
        let places = Arc::new(Places::new(control.next_seat, places));
        control.seats.retain(|seat| seat.strong_count() > 0);
        control.seats.push(Arc::downgrade(&places));
        drop(control);
        Seat { shared, places }
    }

    /// What decides; `None` is the native default.
    pub fn active(&self, kind: Kind) -> Option<Arc<Policy>> {
        lock(&self.shared.control).courses[kind as usize].active.clone()
    }

    /// The versions that were active before it, the last one last: a rollback goes back to that.
    pub fn previous(&self, kind: Kind) -> Vec<Arc<Policy>> {
        let control = lock(&self.shared.control);
        control.courses[kind as usize].previous.iter().map(|version| version.policy.clone()).collect()
    }

    /// Has a policy asked beside the active one.
    pub fn shadow(&self, policy: &Arc<Policy>) -> Result<(), ActivateError> {
        let shared = &self.shared;
        let mut control = lock(&shared.control);
        let kind = policy.kind();
        control.has(policy)?;
        let seats = control.seats();
        let mut locked: Vec<_> = seats.iter().map(|seat| (seat.seat, seat.lock(kind))).collect();
        let mut shadows = Vec::new();
        for (seat, place) in &mut locked {
            let state = place.active.as_mut().and_then(|live| live.export(shared, *seat).0);
            let guest = policy.start(state.as_ref()).map_err(|fault| control.refused(policy, fault))?;
            shadows.push(Shadow::new(policy.clone(), Some(guest), state));
        }
        for ((_, place), shadow) in locked.iter_mut().zip(shadows) {
            place.shadow = Some(shadow);
        }
        drop(locked);
        control.courses[kind as usize].shadow = Some(policy.clone());
        shared.tell(&mut control, kind, format!("{} is a shadow", policy.id()));
        Ok(())
    }

    /// Asks no shadow any more; true if there was one.
    pub fn stop_shadow(&self, kind: Kind) -> bool {
        let mut control = lock(&self.shared.control);
        let stopped = control.stop_shadow(kind);
        if stopped {
            self.shared.tell(&mut control, kind, "the shadow is stopped".into());
        }
        stopped
    }

    /// Makes a policy the active one of its kind, on all policy threads.
    pub fn activate(&self, policy: &Arc<Policy>, start: Start) -> Result<Activation, ActivateError> {
        let shared = &self.shared;
        let mut control = lock(&shared.control);
        let kind = policy.kind();
        control.has(policy)?;
        let from = if start == Start::Carry { Source::Active } else { Source::Nothing };
        let installed = match shared.install(&mut control, kind, Some(policy), from) {
            Ok(installed) => installed,
            Err(fault) => {
                let refused = control.refused(policy, fault);
                shared.tell(&mut control, kind, refused.to_string());
                return Err(refused);
            }
        };
        if control.courses[kind as usize].shadow.as_ref().is_some_and(|shadow| shadow.id() == policy.id()) {
            control.stop_shadow(kind);
        }
        let before = control.label(kind, &shared.native);
        let course = &mut control.courses[kind as usize];
        if let Some(policy) = course.active.replace(policy.clone()) {
            course.previous.push(Version { policy, states: installed.before.clone() });
            let surplus = course.previous.len().saturating_sub(shared.options.previous_max);
            course.previous.drain(..surplus);
        }
        course.rolled_back = None;
        shared.counters(kind).activations.fetch_add(1, Ordering::Relaxed);
        let activation = control.activation(kind, before, &installed, &shared.native);
        let what = format!("{} is active in place of {}", activation.active, activation.before);
        shared.tell(&mut control, kind, what);
        Ok(activation)
    }

    /// Goes back to the version before, in the end to the native default.
    pub fn roll_back(&self, kind: Kind) -> Result<Activation, ActivateError> {
        let mut control = lock(&self.shared.control);
        self.shared.roll_back(&mut control, kind, "by hand", false)
    }

    /// Why faults have rolled a version back, told once.
    pub fn take_rolled_back(&self, kind: Kind) -> Option<String> {
        lock(&self.shared.control).courses[kind as usize].untold.take()
    }

    /// Notes what whoever runs policies has to say of a kind, among what happened.
    pub fn note(&self, kind: Kind, what: String) {
        self.shared.tell(&mut lock(&self.shared.control), kind, what);
    }

    /// How everything stands.
    pub fn status(&self) -> Status {
        let control = lock(&self.shared.control);
        let journal = lock(&self.shared.log);
        let (log_errors, log_last_error) = (journal.errors, journal.last_error.clone());
        drop(journal);
        Status {
            kinds: Kind::ALL.map(|kind| self.kind_status(&control, kind)).into(),
            library: control.library.iter().map(|policy| PolicyStatus::from(&**policy)).collect(),
            events: control.events.iter().cloned().collect(),
            log_errors,
            log_last_error,
        }
    }

    fn kind_status(&self, control: &Control, kind: Kind) -> KindStatus {
        let course = &control.courses[kind as usize];
        let mut shadow = course.shadow.as_ref().map(|policy| ShadowStatus::of(policy));
        let mut running = Vec::new();
        for seat in control.seats.iter().filter_map(Weak::upgrade) {
            let place = seat.lock(kind);
            let label = place.active.as_ref().map_or(&self.shared.native, Live::label);
            running.push((seat.seat, label.to_string()));
            if let (Some(all), Some(one)) = (&mut shadow, &place.shadow) {
                all.comparison.add(&one.comparison);
            }
        }
        KindStatus {
            kind: kind.name(),
            active: course.active.as_ref().map(|policy| PolicyStatus::from(&**policy)),
            running,
            previous: course.previous.iter().map(|version| version.policy.id().to_string()).collect(),
            shadow,
            counters: self.shared.counters(kind).read(),
            rolled_back: course.rolled_back.clone(),
        }
    }
}

impl Control {
    fn seats(&mut self) -> Vec<Arc<Places>> {
        self.seats.retain(|seat| seat.strong_count() > 0);
        self.seats.iter().filter_map(Weak::upgrade).collect()
    }

    fn label(&self, kind: Kind, native: &Arc<str>) -> Arc<str> {
        let active = &self.courses[kind as usize].active;
        active.as_ref().map_or_else(|| native.clone(), |policy| Arc::from(policy.id().to_string()))
    }

    /// A policy that is put to use is one that is there.
    fn has(&self, policy: &Policy) -> Result<(), ActivateError> {
        let is_there = self.library.iter().any(|known| known.id() == policy.id());
        if is_there { Ok(()) } else { Err(ActivateError::Removed(policy.id().to_string())) }
    }

    fn refused(&self, policy: &Policy, fault: Fault) -> ActivateError {
        let stays = self.label(policy.kind(), &Arc::from("the native default")).to_string();
        ActivateError::Refused { policy: policy.id().to_string(), stays, fault }
    }

    fn activation(
        &self,
        kind: Kind,
        before: Arc<str>,
        installed: &Installed,
        native: &Arc<str>,
    ) -> Activation {
        Activation {
            active: self.label(kind, native),
            before,
            seats: installed.seats,
            state_bytes: installed.state_bytes,
            held_ns: installed.held_ns,
        }
    }

    fn stop_shadow(&mut self, kind: Kind) -> bool {
        for seat in self.seats() {
            seat.lock(kind).shadow = None;
        }
        self.courses[kind as usize].shadow.take().is_some()
    }
}

impl Shared {
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn native_label(&self) -> Arc<str> {
        self.native.clone()
    }

    fn counters(&self, kind: Kind) -> &Counters {
        &self.kinds[kind as usize].counters
    }

    pub(crate) fn next_decision(&self, kind: Kind) -> u64 {
        self.counters(kind).decisions.fetch_add(1, Ordering::Relaxed);
        self.decisions.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn count(&self, kind: Kind, by_policy: bool, fault: Option<&Fault>) {
        self.counters(kind).count(by_policy, fault.map(Fault::class));
    }

    /// Notes a fault; enough of them within the window are trouble.
    pub(crate) fn trouble(
        &self,
        kind: Kind,
        decision: u64,
        generation: u64,
        fault: &Fault,
    ) -> Option<Trouble> {
        let Options { faults_max, fault_window, .. } = self.options;
        let mut faults = lock(&self.kinds[kind as usize].faults);
        faults.push_back(decision);
        while faults.front().is_some_and(|first| first + fault_window <= decision) {
            faults.pop_front();
        }
        let count = faults.len() as u64;
        (count >= faults_max).then(|| {
            let why = format!("{count} faults within {fault_window} decisions, the last one: {fault}");
            Trouble { generation, why }
        })
    }

    /// Appends to the log. A log that fails is counted and does not stop decisions.
    pub(crate) fn log(&self, record: impl FnOnce() -> Record) {
        if self.options.log.is_none() {
            return;
        }
        let record = record();
        let mut journal = lock(&self.log);
        let outcome = journal.log.as_mut().map(|log| log.append(&record));
        if let Some(Err(error)) = outcome {
            journal.failed(&error);
        }
    }

    fn tell(&self, control: &mut Control, kind: Kind, what: String) {
        let at_ms = wall_ms();
        self.log(|| Record::Event { at_ms, kind, what: what.clone() });
        if control.events.len() == EVENTS_MAX {
            control.events.pop_front();
        }
        control.events.push_back(LifeEvent { at_ms, kind: kind.name(), what });
    }

    /// Goes back because of faults, unless somebody has changed the version meanwhile.
    pub(crate) fn roll_back_from(&self, kind: Kind, trouble: &Trouble) {
        let mut control = lock(&self.control);
        if control.courses[kind as usize].generation == trouble.generation {
            // It fails only when the native default decides already, and then there was no policy to fail.
            if self.roll_back(&mut control, kind, &trouble.why, true).is_ok() {
                let course = &mut control.courses[kind as usize];
                course.untold.clone_from(&course.rolled_back);
            }
        }
    }

    fn roll_back(
        &self,
        control: &mut Control,
        kind: Kind,
        why: &str,
        automatic: bool,
    ) -> Result<Activation, ActivateError> {
        let before = control.label(kind, &self.native);
        if control.courses[kind as usize].active.is_none() {
            return Err(ActivateError::NothingBefore(kind));
        }
        // A version that does not start any more is skipped; the native default always does.
        let installed = loop {
            let version = control.courses[kind as usize].previous.pop();
            let policy = version.as_ref().map(|version| &version.policy);
            // What a failing policy has come to is not worth keeping.
            let from = match &version {
                Some(version) if automatic => Source::Kept(&version.states),
                Some(version) => Source::ActiveElse(&version.states),
                None => Source::Nothing,
            };
            match self.install(control, kind, policy, from) {
                Ok(installed) => {
                    control.courses[kind as usize].active = version.map(|version| version.policy);
                    break installed;
                }
                Err(fault) => {
                    let Some(version) = version else { continue };
                    self.tell(
                        control,
                        kind,
                        format!("{} does not start any more: {fault}", version.policy.id()),
                    );
                }
            }
        };
        self.counters(kind).rollbacks.fetch_add(1, Ordering::Relaxed);
        let activation = control.activation(kind, before, &installed, &self.native);
        let what = format!("{} is rolled back to {}: {why}", activation.before, activation.active);
        control.courses[kind as usize].rolled_back = Some(what.clone());
        self.tell(control, kind, what);
        Ok(activation)
    }

    /// Swaps all seats, or none.
    fn install(
        &self,
        control: &mut Control,
        kind: Kind,
        policy: Option<&Arc<Policy>>,
        from: Source<'_>,
    ) -> Result<Installed, Fault> {
        let seats = control.seats();
        // Instances are made before anybody has to wait.
        let start = || seats.iter().map(|_| policy.map(|policy| policy.start(None)).transpose()).collect();
        let fresh: Result<Vec<Option<Guest>>, Fault> = aside(start)?;
        let fresh = fresh?;
        let mut locked: Vec<_> = seats.iter().map(|seat| (seat.seat, seat.lock(kind))).collect();
        let held = Instant::now();
        let mut ready = Vec::new();
        let mut installed =
            Installed { before: BTreeMap::new(), seats: seats.len(), state_bytes: 0, held_ns: 0 };
        for ((seat, place), guest) in locked.iter_mut().zip(fresh) {
            let now = place.active.as_mut().and_then(|live| live.export(self, *seat).0);
            if let Some(state) = &now {
                installed.before.insert(*seat, state.clone());
            }
            let Some((policy, guest)) = policy.zip(guest) else { continue };
            let live = hand_over(policy, guest, now, *seat, &from)?;
            installed.state_bytes += live.state_bytes();
            ready.push(live);
        }
        control.courses[kind as usize].generation += 1;
        lock(&self.kinds[kind as usize].faults).clear();
        let mut ready = ready.into_iter();
        let mut old = Vec::new();
        for (seat, place) in &mut locked {
            place.generation = control.courses[kind as usize].generation;
            old.push(std::mem::replace(&mut place.active, ready.next()));
            if let Some(live) = &place.active {
                live.log_state(self, *seat, true);
            }
        }
        drop(locked);
        installed.held_ns = u64::try_from(held.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Giving back their memory takes a while. Without a thread for it, it has happened here.
        let _ = aside(move || drop(old));
        Ok(installed)
    }
}

/// Does what nobody waits for at low priority, so that decisions go first where processors are few.
fn aside<T: Send>(act: impl FnOnce() -> T + Send) -> Result<T, Fault> {
    std::thread::scope(|scope| {
        let work = || {
            // On Linux niceness belongs to the thread. Where that is refused, it works at ordinary priority.
            let _ = rustix::process::nice(10);
            act()
        };
        let thread = std::thread::Builder::new().name("policy-swap".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| Fault::Start(format!("there is no thread for it: {error}")))?;
        thread.join().map_err(|_| Fault::Start("its thread panicked".into()))
    })
}

/// Gives a new instance what it goes on from.
fn hand_over(
    policy: &Arc<Policy>,
    mut guest: Guest,
    now: Option<State>,
    seat: u32,
    from: &Source<'_>,
) -> Result<Live, Fault> {
    let (state, otherwise) = match from {
        Source::Active => (now, None),
        Source::ActiveElse(kept) => (now, Some(kept.get(&seat).cloned())),
        Source::Kept(kept) => (kept.get(&seat).cloned(), None),
        Source::Nothing => (None, None),
    };
    let Some(given) = &state else { return Ok(Live::new(policy.clone(), guest, None)) };
    match (guest.import_state(given), otherwise) {
        (Ok(()), _) => Ok(Live::new(policy.clone(), guest, state)),
        (Err(fault), None) => Err(fault),
        // An older version need not read what a newer one has written; it goes on from what it left itself.
        (Err(_), Some(kept)) => {
            let guest = policy.start(kept.as_ref())?;
            Ok(Live::new(policy.clone(), guest, kept))
        }
    }
}

/// The classes of faults, for status pages.
pub(crate) fn class_index(class: FaultClass) -> usize {
    FaultClass::ALL.iter().position(|known| *known == class).unwrap_or(0)
}
