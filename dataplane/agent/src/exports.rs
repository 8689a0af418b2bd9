//! The set of volumes that are served, and going from one set to another while they are.
//!
//! [`Exports::prepare`] compares what is wanted with what is served and opens what is new; nothing that runs has
//! changed by then, so what can go wrong with a new set mostly goes wrong there. [`Change::commit`] carries the
//! differences out: new volumes are served, limits are set and volumes grow; then those that are gone are drained
//! and closed, and those that take a place or a name which was in use until then are opened. A set may come from
//! the configuration file or from a control plane; the same set again changes nothing.
//!
//! One volume that cannot be opened keeps no other from being served. At the start it is left out; it is tried again
//! with each reload that wants it still, and is no reason to refuse that one. A control plane's sets do not try it:
//! each try claims an epoch of the volume, and they come often.
//!
//! Invariants: a volume's number is that of no other volume until all numbers were used, so that a client on its
//! way to a volume that goes never comes to another one; clients are told of a volume only while it is served.

mod homes;
mod open;
mod table;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use engine::block::VolumeId;
use engine::session::nvme_tcp::{Listed, SubsystemLimits};
use engine::throttle::Limits;
use engine::{ChangeError, Leave, Node, SERVED_MAX};
use tracing::{error, info, warn};

use self::homes::Homes;
use self::open::Opened;
pub use self::open::ServeError;
pub(crate) use self::table::{Served, Table};
use crate::config::LowerError;
use crate::config::exports::{Place, Wanted, check, leaves};

/// Why a set of exports is not served.
#[derive(Debug, thiserror::Error)]
pub enum ExportsError {
    /// It contradicts itself.
    #[error(transparent)]
    Set(#[from] LowerError),
    /// A volume cannot be served. Nothing has changed if it is a new one.
    #[error("export \"{name}\": {source}")]
    Serve {
        /// What hosts call it.
        name: String,
        /// What is wrong.
        source: ServeError,
    },
    /// A volume that is served cannot become what is wanted.
    #[error("export \"{name}\": {source}")]
    Change {
        /// What hosts call it.
        name: String,
        /// What is wrong.
        source: ChangeError,
    },
    /// What is in memory would be lost.
    #[error(
        "export \"{0}\" lies in memory and would lose its content; only its limits can be changed: leave the rest as it \
         is, or remove it and add another one under a new name"
    )]
    InMemory(String),
    /// No worker is ready to serve.
    #[error(
        "this data plane was started without [[export]], and without listen in [nbd] and [nvme]; it cannot serve \
         before it is restarted"
    )]
    NotServing,
}

/// What a change of the set did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Volumes that are served since.
    pub added: usize,
    /// Volumes that are not served any more.
    pub removed: usize,
    /// Volumes that were closed and opened anew, since only their names are the same.
    pub replaced: usize,
    /// Volumes that are larger.
    pub grown: usize,
    /// Standbys that were taken over, and volumes that became standbys.
    pub switched: usize,
}

impl fmt::Display for Applied {
    /// What follows a sentence: "; exports: 2 added, 1 removed", or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.added, "added"),
            (self.removed, "removed"),
            (self.replaced, "replaced"),
            (self.grown, "grown"),
            (self.switched, "switched"),
        ];
        let said =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let said: Vec<String> = said.collect();
        if said.is_empty() { Ok(()) } else { write!(f, "; exports: {}", said.join(", ")) }
    }
}

/// What does not change while the data plane runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub hugepages: bool,
    pub memory_bytes: u64,
    pub controllers: SubsystemLimits,
    /// Workers have what serving needs.
    pub can_serve: bool,
}

/// See the module's documentation.
pub(crate) struct Exports {
    settings: Settings,
    table: Arc<ArcSwap<Table>>,
    /// What cannot be opened since the start.
    left_out: ArcSwap<Vec<Arc<LeftOut>>>,
    /// Held while the set is being changed.
    homes: Mutex<Homes>,
}

/// A volume that is wanted and not served.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub wanted: Wanted,
    pub why: ServeError,
}

/// A set that was found right, with what is new in it opened.
pub(crate) struct Change<'a> {
    exports: &'a Exports,
    homes: MutexGuard<'a, Homes>,
    steps: Vec<Step>,
    /// Served now, not wanted.
    gone: Vec<Arc<Served>>,
    left_out: Vec<Arc<LeftOut>>,
}

/// Whether volumes that were left out are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    Yes,
    No,
}

/// What one wanted volume needs.
enum Step {
    /// Nothing, or other limits.
    Keep(Wanted, Arc<Served>),
    Grow(Wanted, Arc<Served>, u64),
    /// It is new, and open.
    Add(Wanted, VolumeId, Box<Opened>),
    /// It is opened when what has its name or its place is closed.
    Replace(Wanted, VolumeId, Option<Arc<Served>>),
    /// A standby is taken over.
    TakeOver(Wanted, Arc<Served>),
    /// A volume becomes a standby.
    StandBy(Wanted, Arc<Served>),
}

impl Exports {
    pub fn new(settings: Settings) -> Exports {
        Exports { settings, table: Arc::default(), left_out: ArcSwap::default(), homes: Mutex::default() }
    }

    /// What is served now.
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// What is wanted and not served now.
    pub fn left_out(&self) -> Arc<Vec<Arc<LeftOut>>> {
        self.left_out.load_full()
    }

    /// Where what is served can be seen, at any time.
    pub fn shared(&self) -> Arc<ArcSwap<Table>> {
        Arc::clone(&self.table)
    }

    /// Compares `wanted` with what is served, and opens what is new. Nothing that is served has changed.
    pub fn prepare(&self, wanted: Vec<Wanted>, retry: Retry) -> Result<Change<'_>, ExportsError> {
        check(&wanted)?;
        if !wanted.is_empty() && !self.settings.can_serve {
            return Err(ExportsError::NotServing);
        }
        let homes = self.homes.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        let names: BTreeSet<&str> = wanted.iter().map(|one| one.name.as_str()).collect();
        let gone: Vec<_> =
            table.served.iter().filter(|one| !names.contains(one.wanted.name.as_str())).cloned().collect();
        let steps = Vec::with_capacity(wanted.len());
        let mut change = Change { exports: self, homes, steps, gone, left_out: Vec::new() };
        let files = wanted.iter().filter(|one| one.directory().is_some()).count();
        let before = self.left_out();
        for one in wanted {
            if retry == Retry::No
                && let Some(left_out) = before.iter().find(|before| before.wanted == one)
            {
                change.left_out.push(Arc::clone(left_out));
                continue;
            }
            let step = change.step(&table, one)?;
            change.steps.push(step);
        }
        let is_start = table.generation == 0;
        let may_fail = |one: &Wanted| is_start || before.iter().any(|before| before.wanted == *one);
        change.open_new(leaves(self.settings.memory_bytes, files), &may_fail)?;
        Ok(change)
    }
}

/// How `wanted` differs from the volume of its name that is served.
fn differs(wanted: &Wanted, served: &Arc<Served>) -> Result<Option<Step>, ExportsError> {
    let old = &served.wanted;
    let name = || wanted.name.clone();
    if !wanted.is_standby() && !old.is_standby() && wanted.grant() != old.grant() {
        // It was given away and back: whatever is open of it is another one's by now.
        return Ok(None);
    }
    if wanted.is_like(old) {
        // All that can differ yet is how large it should be, and whether this node serves it.
        let bytes = wanted.place.bytes().unwrap_or(served.bytes());
        open::check_size(served.bytes(), Some(bytes))
            .map_err(|source| ExportsError::Serve { name: name(), source })?;
        let blocks = bytes >> served.size.shift();
        return Ok(Some(match (wanted.is_standby(), old.is_standby()) {
            (false, true) => Step::TakeOver(wanted.clone(), Arc::clone(served)),
            (true, false) => Step::StandBy(wanted.clone(), Arc::clone(served)),
            _ if blocks == served.blocks => Step::Keep(wanted.clone(), Arc::clone(served)),
            _ if matches!(wanted.place, Place::Memory { .. }) => return Err(ExportsError::InMemory(name())),
            _ if matches!(wanted.place, Place::Null { .. }) => return Ok(None),
            _ => Step::Grow(wanted.clone(), Arc::clone(served), blocks),
        }));
    }
    if matches!(old.place, Place::Memory { .. }) { Err(ExportsError::InMemory(name())) } else { Ok(None) }
}

impl Change<'_> {
    fn step(&mut self, table: &Table, wanted: Wanted) -> Result<Step, ExportsError> {
        let served = table.served.iter().find(|one| one.wanted.name == wanted.name);
        if let Some(served) = served
            && let Some(step) = differs(&wanted, served)?
        {
            return Ok(step);
        }
        let number = self.number(table)?;
        Ok(Step::Replace(wanted, number, served.cloned()))
    }

    /// Opens those of whose names and places nothing is in use.
    fn open_new(&mut self, leaves: usize, may_fail: &dyn Fn(&Wanted) -> bool) -> Result<(), ExportsError> {
        let leaving = self.leaving();
        let is_free = |wanted: &Wanted, one: &Arc<Served>| {
            let same_place = one.wanted.directory().is_some() && one.wanted.directory() == wanted.directory();
            !same_place && !homes::collide(&one.wanted, wanted)
        };
        for step in std::mem::take(&mut self.steps) {
            let step = match step {
                Step::Replace(wanted, volume, None) if leaving.iter().all(|one| is_free(&wanted, one)) => {
                    match open::open(&wanted, volume, leaves, self.exports.settings.hugepages) {
                        Ok(opened) => Step::Add(wanted, volume, Box::new(opened)),
                        Err(why) if may_fail(&wanted) => {
                            error!(
                                export = wanted.name,
                                "not served: {why}; `tidegate-dataplane reload` serves it when it is mended"
                            );
                            self.left_out.push(Arc::new(LeftOut { wanted, why }));
                            continue;
                        }
                        Err(source) => return Err(ExportsError::Serve { name: wanted.name, source }),
                    }
                }
                other => other,
            };
            self.steps.push(step);
        }
        Ok(())
    }

    /// What is wrong, if volumes are wanted and none of them can be opened.
    pub fn nothing_left(&mut self) -> Option<ExportsError> {
        let left_out = self.left_out.pop_if(|_| self.steps.is_empty())?;
        // INVARIANT: nobody else has what was left out just now.
        let LeftOut { wanted, why } = Arc::into_inner(left_out)?;
        Some(ExportsError::Serve { name: wanted.name, source: why })
    }

    /// Volumes that are served now and are to be closed.
    fn leaving(&self) -> Vec<Arc<Served>> {
        let replaced = self.steps.iter().filter_map(|step| match step {
            Step::Replace(_, _, Some(old)) => Some(old),
            _ => None,
        });
        self.gone.iter().chain(replaced).cloned().collect()
    }

    /// A number that no volume has, as far as possible from those that were given last.
    fn number(&mut self, table: &Table) -> Result<VolumeId, ExportsError> {
        let number = self.homes.number(|number| table.served.iter().any(|one| one.volume == number));
        number.ok_or_else(too_many)
    }

    /// Goes over to the set. `limits` says what a volume may do. After an error what was served before is served
    /// still, but for what the error names, and what was left out and is not served is left out still.
    pub fn commit(
        mut self,
        node: &Node,
        limits: &dyn Fn(&Wanted) -> Limits,
    ) -> Result<Applied, ExportsError> {
        let settings = self.exports.settings;
        let left_out = std::mem::take(&mut self.left_out);
        let leaving = self.leaving();
        let files = self.steps.iter().filter(|step| step.wanted().directory().is_some()).count();
        // What can be taken back comes first.
        let (mut now, mut later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.steps)
            .into_iter()
            .enumerate()
            .partition(|(_, step)| step.rank() < LATER);
        now.sort_by_key(|(_, step)| step.rank());
        let leaves = leaves(settings.memory_bytes, files);
        let numbers = now.iter().chain(&later).filter_map(|(_, step)| step.number());
        let numbers = self.exports.table().served.iter().map(|one| one.volume).chain(numbers).collect();
        let (homes, applied) = (&mut *self.homes, Applied::default());
        let mut round = Round { node, settings, limits, leaves, homes, numbers, applied };
        let mut served = round.first(now)?;
        // From here on nobody new comes to what goes.
        let standing = later.iter().filter_map(|(place, step)| Some((*place, Arc::clone(step.standing()?))));
        let standing: Vec<_> = standing.collect();
        self.exports.show(served.iter().chain(&standing).cloned().collect());
        if let Err(why) = round.close(&leaving) {
            let leaving = leaving.into_iter().map(|one| (usize::MAX, one));
            self.exports.show(served.into_iter().chain(standing).chain(leaving).collect());
            return Err(why);
        }
        later.sort_by_key(|(_, step)| step.rank());
        let mut outcome = Ok(());
        for (place, step) in later {
            let standing = step.standing().cloned();
            match round.take(step) {
                Ok(one) => served.push((place, one)),
                Err(why) => {
                    served.extend(standing.map(|one| (place, one)));
                    outcome = outcome.and(Err(why));
                }
            }
        }
        self.exports.show(served);
        if outcome.is_ok() {
            self.exports.left_out.store(Arc::new(left_out));
        }
        outcome.map(|()| round.applied)
    }
}

fn too_many() -> ExportsError {
    let what = format!("at most {SERVED_MAX} volumes can be served");
    LowerError::Key { place: "[[export]]".to_owned(), what }.into()
}

/// Steps of this rank and above need something to be closed, or cannot be taken back.
const LATER: u8 = 3;

impl Exports {
    /// What is served is left out no more.
    fn show(&self, mut served: Vec<(usize, Arc<Served>)>) {
        let generation = self.table.load().generation + 1;
        served.sort_by_key(|(place, _)| *place);
        let served: Vec<_> = served.into_iter().map(|(_, one)| one).collect();
        let is_out = |one: &&Arc<LeftOut>| served.iter().all(|other| other.wanted.name != one.wanted.name);
        let left_out = self.left_out().iter().filter(is_out).cloned().collect();
        self.table.store(Arc::new(Table::new(generation, served)));
        self.left_out.store(Arc::new(left_out));
    }
}

impl Step {
    fn wanted(&self) -> &Wanted {
        match self {
            Step::Keep(wanted, _)
            | Step::Grow(wanted, ..)
            | Step::Add(wanted, ..)
            | Step::Replace(wanted, ..)
            | Step::TakeOver(wanted, _)
            | Step::StandBy(wanted, _) => wanted,
        }
    }

    /// The number that a volume gets by it.
    fn number(&self) -> Option<VolumeId> {
        match self {
            Step::Add(_, number, _) | Step::Replace(_, number, _) => Some(*number),
            _ => None,
        }
    }

    /// What goes on as it is if the step cannot be taken.
    fn standing(&self) -> Option<&Arc<Served>> {
        match self {
            Step::TakeOver(_, served) | Step::StandBy(_, served) => Some(served),
            _ => None,
        }
    }

    /// Its place in the order of a change.
    fn rank(&self) -> u8 {
        match self {
            Step::Add(..) => 0,
            Step::Grow(..) => 1,
            Step::Keep(..) => 2,
            Step::StandBy(..) => LATER,
            Step::Replace(..) => LATER + 1,
            Step::TakeOver(..) => LATER + 2,
        }
    }
}

/// The work of one change.
struct Round<'a> {
    node: &'a Node,
    settings: Settings,
    limits: &'a dyn Fn(&Wanted) -> Limits,
    leaves: usize,
    homes: &'a mut Homes,
    /// Those that volumes have, or get by this change.
    numbers: Vec<VolumeId>,
    applied: Applied,
}

impl Round<'_> {
    /// What needs nothing to be closed. After an error what was added is closed again.
    fn first(&mut self, steps: Vec<(usize, Step)>) -> Result<Vec<(usize, Arc<Served>)>, ExportsError> {
        let (mut served, mut added) = (Vec::with_capacity(steps.len()), Vec::new());
        for (place, step) in steps {
            let is_new = matches!(step, Step::Add(..));
            match self.take(step) {
                Ok(one) => {
                    added.extend(is_new.then(|| Arc::clone(&one)));
                    served.push((place, one));
                }
                Err(why) => {
                    if let Err(also) = self.close(&added) {
                        warn!("while going back to what was served: {also}");
                    }
                    return Err(why);
                }
            }
        }
        Ok(served)
    }

    fn take(&mut self, step: Step) -> Result<Arc<Served>, ExportsError> {
        match step {
            Step::Keep(wanted, served) => {
                self.set(&wanted, served.volume);
                Ok(Arc::new(Served { wanted, ..Served::clone(&served) }))
            }
            Step::Grow(wanted, served, blocks) => {
                self.set(&wanted, served.volume);
                self.grow(&wanted, served.volume, blocks)?;
                self.applied.grown += 1;
                Served::grown(wanted, &served, blocks)
            }
            Step::Add(wanted, volume, opened) => {
                self.applied.added += 1;
                self.serve(wanted, volume, *opened)
            }
            Step::StandBy(wanted, served) => {
                self.leave(&[(wanted.worker, served.volume, Leave::Standby)], &wanted.name)?;
                self.applied.switched += 1;
                info!(export = wanted.name, "another node may take it over: it is a standby here");
                Ok(Arc::new(Served { wanted, ..Served::clone(&served) }))
            }
            Step::Replace(wanted, volume, old) => {
                let opened = open_one(&wanted, volume, self.leaves, &self.settings)?;
                if old.is_some() {
                    self.applied.replaced += 1;
                    self.applied.removed -= 1;
                } else {
                    self.applied.added += 1;
                }
                self.serve(wanted, volume, opened)
            }
            Step::TakeOver(wanted, served) => {
                let opened = open_one(&wanted, served.volume, self.leaves, &self.settings)?;
                self.applied.switched += 1;
                self.take_over(wanted, &served, opened)
            }
        }
    }

    /// What changes without a trace in what clients see. A worker that has ended was told of by the publication.
    fn set(&self, wanted: &Wanted, volume: VolumeId) {
        self.node.limit(wanted.worker, volume, &(self.limits)(wanted));
        self.node.sample(wanted.worker, volume, wanted.sample);
        self.drill(wanted, volume);
    }

    /// What goes wrong at its medium on purpose.
    fn drill(&self, wanted: &Wanted, volume: VolumeId) {
        if wanted.faults.is_some() {
            warn!(export = wanted.name, "things go wrong at its medium on purpose, as configured");
        }
        self.node.set_faults(wanted.worker, volume, &wanted.faults.clone().unwrap_or_default());
    }

    /// Gives a volume to its worker.
    fn serve(
        &mut self,
        wanted: Wanted,
        volume: VolumeId,
        opened: Opened,
    ) -> Result<Arc<Served>, ExportsError> {
        let name = wanted.name.clone();
        let failed = |source| ExportsError::Serve { name: name.clone(), source };
        let namespace = open::namespace(&wanted, volume, &opened).map_err(failed)?;
        let offer = open::offer(&wanted, volume, opened.size, opened.blocks, Some(opened.identity))
            .map_err(failed)?;
        let Opened { target, size, blocks, identity } = opened;
        let (target, home, worker, nqn) = match &wanted.nqn {
            Some(nqn) => {
                let (home, worker) = self.home(nqn, &wanted)?;
                (target.with_home(home, namespace), Some(home), worker, nqn.clone())
            }
            None => {
                let own = open::own_subsystem(&wanted, namespace, &identity, self.settings.controllers);
                let own = own.map_err(failed)?;
                let nqn = own.nqn().to_owned();
                (target.with_subsystem(own), None, wanted.worker, nqn)
            }
        };
        let listed = Listed { nqn, hosts: wanted.hosts.clone() };
        let target = target.with_sampling(wanted.sample);
        let target = target.with_frozen(wanted.frozen).with_saved(wanted.saved);
        let served = self.node.serve(worker, target, &(self.limits)(&wanted));
        if let Err(source) = served {
            self.close_homes();
            return Err(failed(source.into()));
        }
        self.homes.join(volume, home);
        self.drill(&wanted, volume);
        info!(export = wanted.name, nqn = listed.nqn, "served");
        let served = Served { volume, size, blocks, offer, listed, wanted, home };
        self.fit(served)
    }

    /// Brings the volume behind a standby's names.
    fn take_over(
        &self,
        wanted: Wanted,
        served: &Served,
        opened: Opened,
    ) -> Result<Arc<Served>, ExportsError> {
        let name = wanted.name.clone();
        let failed = |source| ExportsError::Serve { name: name.clone(), source };
        let Opened { target, size, blocks, .. } = opened;
        if size != served.size {
            let path = wanted.directory().map(Path::to_owned).unwrap_or_default();
            return Err(failed(ServeError::Blocks { path, found: size.bytes(), told: served.size.bytes() }));
        }
        let target = target.with_frozen(wanted.frozen).with_saved(wanted.saved);
        let taken = self.node.serve(wanted.worker, target, &(self.limits)(&wanted));
        taken.map_err(|source| failed(source.into()))?;
        self.set(&wanted, served.volume);
        info!(export = wanted.name, "taken over");
        self.fit(Served { wanted, blocks, ..served.clone() })
    }

    /// Makes a volume that was opened as large as it should be.
    fn fit(&self, served: Served) -> Result<Arc<Served>, ExportsError> {
        let blocks = served.wanted.place.bytes().map_or(served.blocks, |bytes| bytes >> served.size.shift());
        if blocks > served.blocks {
            self.grow(&served.wanted, served.volume, blocks)?;
        }
        Served::grown(served.wanted.clone(), &served, blocks)
    }

    fn grow(&self, wanted: &Wanted, volume: VolumeId, blocks: u64) -> Result<(), ExportsError> {
        let grown = self.node.grow(wanted.worker, volume, blocks);
        grown.map_err(|source| ExportsError::Change { name: wanted.name.clone(), source })?;
        info!(export = wanted.name, blocks, "grown; NBD clients see it when they attach again");
        Ok(())
    }

    /// Closes volumes, all at the same time.
    fn close(&mut self, volumes: &[Arc<Served>]) -> Result<(), ExportsError> {
        let asked: Vec<_> = volumes.iter().map(|one| (one.wanted.worker, one.volume, Leave::Gone)).collect();
        let name_of =
            |volume| volumes.iter().find(|one| one.volume == volume).map(|one| one.wanted.name.clone());
        self.node.leave(&asked).map_err(|(volume, source)| {
            let name = name_of(volume).unwrap_or_default();
            ExportsError::Change { name, source }
        })?;
        self.applied.removed += volumes.len();
        for one in volumes {
            self.homes.leave(one.volume);
            info!(export = one.wanted.name, "closed");
        }
        self.close_homes();
        Ok(())
    }

    fn leave(&self, volumes: &[(usize, VolumeId, Leave)], name: &str) -> Result<(), ExportsError> {
        let left = self.node.leave(volumes);
        left.map_err(|(_, source)| ExportsError::Change { name: name.to_owned(), source })
    }
}

fn open_one(
    wanted: &Wanted,
    volume: VolumeId,
    leaves: usize,
    settings: &Settings,
) -> Result<Opened, ExportsError> {
    open::open(wanted, volume, leaves, settings.hugepages)
        .map_err(|source| ExportsError::Serve { name: wanted.name.clone(), source })
}

#[cfg(test)]
mod tests;
