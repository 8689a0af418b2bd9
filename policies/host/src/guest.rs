//! One live instance of a policy.
//!
//! Each call gets fresh fuel, a fresh deadline and an empty log. After a fault that [`Fault::poisons`] the instance
//! must be dropped: whoever owns it makes a new one from its [`crate::Policy`].

use std::time::Instant;

use serde::{Deserialize, Serialize};
use verdict::{Kind, Question, Tick, Verdict};
use wasmtime::component::{ComponentExportIndex, Func, Instance, InstancePre, Linker};
use wasmtime::{ResourceLimiter, Store, StoreContextMut, Trap};

use crate::engine::{Engine, Limits};
use crate::fault::Fault;
use crate::values::{
    AccountsIn, AssignmentsOut, CandidatesIn, Description, ForecastIn, LeasesIn, ProducersIn, ProfileIn,
    ProfileOut, ResourcesIn, RulesIn, SamplesIn, SnapshotIn, SnapshotOut, TenantsIn, TickIn, TimingOut,
    TransferIn, VictimsOut, WeightsOut,
};

/// The interface that every policy exports.
pub(crate) const STATE_INTERFACE: &str = "tidegate:policy/state@0.1.0";

/// Lines of a call that are kept, and how much of each.
const LOG_LINES_KEPT: usize = 8;
const LOG_LINE_BYTES: usize = 256;

/// What a policy goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// How to read it.
    pub schema: u32,
    /// Opaque.
    pub bytes: Vec<u8>,
}

/// An answer that was given in order.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) verdict: Verdict,
    pub(crate) spent: Spent,
}

/// What a call took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) fuel: u64,
    pub(crate) ns: u64,
    pub(crate) log: Vec<String>,
}

/// What the host keeps beside a guest's memory.
pub(crate) struct Cell {
    limits: Limits,
    memory_refused: bool,
    lines: u32,
    log: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("too many log lines")]
struct TooManyLines;

impl ResourceLimiter for Cell {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let allowed = desired <= self.limits.memory_bytes;
        self.memory_refused |= !allowed;
        Ok(allowed)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= 10_000)
    }
}

/// The one import that a guest may have.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Cell>> {
    let mut linker = Linker::new(engine.wasmtime());
    linker.root().func_wrap("log", |mut store: StoreContextMut<'_, Cell>, (message,): (String,)| {
        let cell = store.data_mut();
        cell.lines += 1;
        if cell.lines > cell.limits.log_lines {
            return Err(TooManyLines.into());
        }
        if cell.log.len() < LOG_LINES_KEPT {
            let mut message = message;
            message.truncate(message.floor_char_boundary(LOG_LINE_BYTES));
            cell.log.push(message);
        }
        Ok(())
    })?;
    Ok(linker)
}

/// Where the functions of a component are.
#[derive(Clone, Debug)]
pub(crate) struct Exports {
    describe: ComponentExportIndex,
    init: ComponentExportIndex,
    export_state: ComponentExportIndex,
    import_state: ComponentExportIndex,
    decisions: Vec<ComponentExportIndex>,
}

/// The functions of each world, in the order of [`decision_of`].
pub(crate) fn decisions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Scheduling => &["schedule"],
        Kind::Leasing => &["update-weights", "pick-victims"],
        Kind::Migration => &["build-profile", "choose-time"],
    }
}

fn decision_of(question: &Question) -> usize {
    match question {
        Question::Schedule(_) | Question::UpdateWeights(_) | Question::BuildProfile(_) => 0,
        Question::PickVictims(_) | Question::ChooseTime(_) => 1,
    }
}

impl Exports {
    /// Looks them up; the name of what is missing otherwise.
    pub(crate) fn of(component: &wasmtime::component::Component, kind: Kind) -> Result<Exports, String> {
        let find = |interface: Option<&ComponentExportIndex>, name: &str| {
            component.get_export_index(interface, name).ok_or_else(|| name.to_owned())
        };
        let state = find(None, STATE_INTERFACE)?;
        let decisions = decisions(kind).iter().map(|name| find(None, name)).collect::<Result<_, _>>()?;
        Ok(Exports {
            describe: find(Some(&state), "describe")?,
            init: find(Some(&state), "init")?,
            export_state: find(Some(&state), "export-state")?,
            import_state: find(Some(&state), "import-state")?,
            decisions,
        })
    }
}

/// A live instance.
pub(crate) struct Guest {
    engine: Engine,
    store: Store<Cell>,
    describe: Func,
    export_state: Func,
    import_state: Func,
    decisions: Vec<Func>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").finish_non_exhaustive()
    }
}

impl Guest {
    /// Instantiates and configures.
    pub(crate) fn start(
        engine: &Engine,
        component: &InstancePre<Cell>,
        exports: &Exports,
        config: &[(String, String)],
    ) -> Result<Guest, Fault> {
        let limits = *engine.limits();
        let cell = Cell { limits, memory_refused: false, lines: 0, log: Vec::new() };
        let mut store = Store::new(engine.wasmtime(), cell);
        store.limiter(|cell| cell);
        store.set_hostcall_fuel(limits.answer_bytes);
        refill(engine, &mut store).map_err(|error| Fault::Start(format!("{error:#}")))?;
        let instance =
            component.instantiate(&mut store).map_err(|error| Fault::Start(format!("{error:#}")))?;
        let mut find = |index: &ComponentExportIndex| function(&instance, &mut store, index);
        let init = find(&exports.init)?;
        let mut guest = Guest {
            engine: engine.clone(),
            describe: find(&exports.describe)?,
            export_state: find(&exports.export_state)?,
            import_state: find(&exports.import_state)?,
            decisions: exports.decisions.iter().map(find).collect::<Result<_, _>>()?,
            store,
        };
        guest.init(&init, config)?;
        Ok(guest)
    }

    fn init(&mut self, init: &Func, config: &[(String, String)]) -> Result<(), Fault> {
        let (answer, _) = self.call(|store| {
            let typed = init.typed::<(&[(String, String)],), (Result<(), String>,)>(&*store)?;
            typed.call(store, (config,))
        })?;
        answer.0.map_err(|why| Fault::Start(format!("it refuses its configuration: {why}")))
    }

    /// What it says about itself.
    pub(crate) fn describe(&mut self) -> Result<Description, Fault> {
        let describe = self.describe;
        let (answer, _) =
            self.call(|store| describe.typed::<(), (Description,)>(&*store)?.call(store, ()))?;
        Ok(answer.0)
    }

    /// What its successor goes on from.
    pub(crate) fn export_state(&mut self) -> Result<State, Fault> {
        let export = self.export_state;
        let (answer, _) = self.call(|store| export.typed::<(), (SnapshotOut,)>(&*store)?.call(store, ()))?;
        let SnapshotOut { schema, bytes } = answer.0;
        let max = self.engine.limits().state_bytes;
        if bytes.len() > max {
            return Err(Fault::State(format!("it exports {} bytes, more than {max}", bytes.len())));
        }
        Ok(State { schema, bytes })
    }

    /// Goes on from there.
    pub(crate) fn import_state(&mut self, state: &State) -> Result<(), Fault> {
        let import = self.import_state;
        let (answer, _) = self.call(|store| {
            let typed = import.typed::<(SnapshotIn<'_>,), (Result<(), String>,)>(&*store)?;
            typed.call(store, (SnapshotIn { schema: state.schema, bytes: &state.bytes },))
        })?;
        answer.0.map_err(|why| Fault::State(format!("it does not take over what was exported: {why}")))
    }

    /// Has a question answered. The verdict has not been checked. A fault says also what was spent.
    pub(crate) fn ask(&mut self, tick: Tick, question: &Question) -> Result<Answer, (Fault, Spent)> {
        let unknown = || (Fault::Answer("it is a policy of another kind".into()), Spent::default());
        let function = *self.decisions.get(decision_of(question)).ok_or_else(unknown)?;
        let (verdict, spent) = self.metered(|store| answer(store, function, tick.into(), question))?;
        Ok(Answer { verdict, spent })
    }

    fn call<T>(
        &mut self,
        act: impl FnOnce(&mut Store<Cell>) -> wasmtime::Result<T>,
    ) -> Result<(T, Spent), Fault> {
        self.metered(act).map_err(|(fault, _)| fault)
    }

    fn metered<T>(
        &mut self,
        act: impl FnOnce(&mut Store<Cell>) -> wasmtime::Result<T>,
    ) -> Result<(T, Spent), (Fault, Spent)> {
        let start = |error: wasmtime::Error| (Fault::Start(format!("{error:#}")), Spent::default());
        refill(&self.engine, &mut self.store).map_err(start)?;
        let started = Instant::now();
        let outcome = act(&mut self.store);
        let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let left = self.store.get_fuel().unwrap_or(0);
        let log = std::mem::take(&mut self.store.data_mut().log);
        let spent = Spent { fuel: self.engine.limits().fuel.saturating_sub(left), ns, log };
        match outcome {
            Ok(value) => Ok((value, spent)),
            Err(error) => Err((fault(&error, self.store.data(), &spent.log), spent)),
        }
    }
}

fn refill(engine: &Engine, store: &mut Store<Cell>) -> wasmtime::Result<()> {
    let cell = store.data_mut();
    (cell.lines, cell.memory_refused) = (0, false);
    cell.log.clear();
    store.set_epoch_deadline(engine.deadline_epochs());
    store.set_fuel(engine.limits().fuel)
}

fn function(
    instance: &Instance,
    store: &mut Store<Cell>,
    index: &ComponentExportIndex,
) -> Result<Func, Fault> {
    instance.get_func(store, index).ok_or_else(|| Fault::Start("an export is not a function".into()))
}

fn answer(
    store: &mut Store<Cell>,
    function: Func,
    tick: TickIn,
    question: &Question,
) -> wasmtime::Result<Verdict> {
    Ok(match question {
        Question::Schedule(question) => {
            type Params<'a> = (TickIn, CandidatesIn<'a>, AccountsIn<'a>, TenantsIn<'a>);
            let typed = function.typed::<Params<'_>, (AssignmentsOut,)>(&*store)?;
            let (candidates, accounts) = ((&question.candidates).into(), (&question.accounts).into());
            let params = (tick, candidates, accounts, (&question.tenants).into());
            Verdict::Schedule(typed.call(store, params)?.0.into())
        }
        Question::UpdateWeights(question) => {
            let typed = function.typed::<(TickIn, ProducersIn<'_>), (WeightsOut,)>(&*store)?;
            Verdict::UpdateWeights(typed.call(store, (tick, (&question.producers).into()))?.0.into())
        }
        Question::PickVictims(question) => {
            type Params<'a> = (TickIn, ResourcesIn, LeasesIn<'a>, u32);
            let typed = function.typed::<Params<'_>, (VictimsOut,)>(&*store)?;
            let params = (tick, question.need.into(), (&question.leases).into(), question.grace_max_ms);
            Verdict::PickVictims(typed.call(store, params)?.0.into())
        }
        Question::BuildProfile(question) => {
            let typed = function.typed::<(TickIn, SamplesIn<'_>, RulesIn), (ProfileOut,)>(&*store)?;
            let params = (tick, (&question.samples).into(), question.rules.into());
            Verdict::BuildProfile(typed.call(store, params)?.0.into())
        }
        Question::ChooseTime(question) => {
            type Params<'a> = (TickIn, ProfileIn<'a>, TransferIn, ForecastIn<'a>, &'a [u64]);
            let typed = function.typed::<Params<'_>, (TimingOut,)>(&*store)?;
            let (profile, link) = ((&question.profile).into(), (&question.link).into());
            let params = (tick, profile, question.transfer.into(), link, question.candidates_ms.as_slice());
            Verdict::ChooseTime(typed.call(store, params)?.0.into())
        }
    })
}

/// Tells faults apart. A panic's text comes through the log, where the kit's panic hook writes it.
fn fault(error: &wasmtime::Error, cell: &Cell, log: &[String]) -> Fault {
    let limits = &cell.limits;
    if error.is::<TooManyLines>() {
        return Fault::LogSpam { lines: limits.log_lines };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::Fuel { fuel: limits.fuel },
        Some(Trap::Interrupt) => Fault::Deadline { ms: limits.deadline_ms },
        Some(Trap::StackOverflow) => Fault::Stack { bytes: limits.stack_bytes },
        Some(_) if cell.memory_refused => Fault::Memory { bytes: limits.memory_bytes },
        Some(trap) => Fault::Trap(log.last().cloned().unwrap_or_else(|| trap.to_string())),
        None => Fault::Answer(format!("{error:#}")),
    }
}
