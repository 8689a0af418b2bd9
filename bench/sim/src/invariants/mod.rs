//! What must always hold: one file each.

pub mod converges;
pub mod ends;
pub mod firm;
pub mod grace;
pub mod ledger;
pub mod links;
pub mod liveness;
pub mod native;
pub mod nothing_lost;
pub mod once;
pub mod one_writer;

use contract::Resources;
use control_core::{Core, Effects};

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// Remembers the first violation of one invariant.
#[derive(Clone, Debug, Default)]
pub struct First(Option<String>);

impl First {
    /// It does not hold unless `holds`.
    pub fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.0.is_none() {
            self.0 = Some(what());
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Invariants {
    /// One writer per epoch, and none below the highest.
    pub one_writer: one_writer::OneWriter,
    /// The ledger within its limits.
    pub ledger: ledger::Ledger,
    /// Links for one move at a time.
    pub links: links::Links,
    /// Firm leases within capacity less contingency.
    pub firm: firm::Firm,
    /// Every operation ends or explains itself.
    pub ends: ends::Ends,
    /// What was revoked goes within its grace.
    pub grace: grace::Grace,
    /// A policy's fault is the native default's decision.
    pub native: native::Native,
    /// Nobody is judged hastily.
    pub liveness: liveness::Liveness,
    /// Nothing is done twice.
    pub once: once::Once,
    /// What was acknowledged is there.
    pub nothing_lost: nothing_lost::NothingLost,
    /// What healed converges.
    pub converges: converges::Converges,
    steps: u64,
}

impl Invariants {
    /// After each step of the core. `capacities` is the truth about the nodes, by their place.
    pub fn after_step(&mut self, plane_ms: u64, core: &Core, effects: &Effects, capacities: &[Resources]) {
        self.steps += 1;
        self.ledger.after_step(core, capacities, self.steps.is_multiple_of(16));
        self.links.after_step(core, self.steps.is_multiple_of(16));
        self.firm.after_step(core, capacities);
        self.grace.after_step(core);
        self.native.after_step(core);
        self.liveness.after_step(plane_ms, core, effects);
        if self.steps.is_multiple_of(64) {
            self.ends.after_step(core);
        }
    }

    /// The first that did not hold.
    pub fn violation(&self) -> Option<Violation> {
        let all: [(&'static str, &First); 11] = [
            ("one_writer", &self.one_writer.first),
            ("ledger", &self.ledger.first),
            ("links", &self.links.first),
            ("firm", &self.firm.first),
            ("grace", &self.grace.first),
            ("ends", &self.ends.first),
            ("native", &self.native.first),
            ("liveness", &self.liveness.first),
            ("once", &self.once.first),
            ("nothing_lost", &self.nothing_lost.first),
            ("converges", &self.converges.first),
        ];
        all.into_iter()
            .find_map(|(invariant, first)| first.0.clone().map(|what| Violation { invariant, what }))
    }
}
