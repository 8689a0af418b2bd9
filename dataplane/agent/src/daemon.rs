//! One running data plane: a configuration file, the node that runs it, and what keeps the two in step.
//!
//! The file is read whole and lowered whole before anything changes. A reload publishes a new snapshot while
//! traffic flows; what only a restart can change is refused by name. When an interface comes up, the
//! snapshot is built anew, since its address and MTU are part of it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine::port::PortCaps;
use engine::{Node, PlanError, PortState, PublishError};
use tracing::info;

use crate::config::{self, File, LowerError, Names, ReadError};

/// How long workers may take to confirm a snapshot.
const CONFIRM: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub struct Daemon {
    path: PathBuf,
    node: Node,
    state: Mutex<State>,
}

struct State {
    file: File,
    names: Names,
    version: u64,
}

/// Why a data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What it says.
    #[error("{}: {source}", path.display())]
    Lower {
        /// The file.
        path: PathBuf,
        /// The entry.
        source: LowerError,
    },
    /// The machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What it says.
    #[error("{}: {source}", path.display())]
    Lower {
        /// The file.
        path: PathBuf,
        /// The entry.
        source: LowerError,
    },
    /// A part that only a restart changes.
    #[error("{what} differs from what runs; that needs a restart (`systemctl restart tidegate-dataplane`)")]
    Restart {
        /// Which part.
        what: &'static str,
    },
    /// The node refuses.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Workers are stuck.
    #[error("version {version} was published, but not every worker runs it after {} s", CONFIRM.as_secs())]
    Unconfirmed {
        /// The version.
        version: u64,
    },
}

/// What `check` found in a file that is right.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Workers, ports, tenants, rules, volumes and groups, with their number.
    pub counts: [(&'static str, usize); 6],
}

/// Validates a file without opening anything.
pub fn check(path: &Path) -> Result<Checked, StartError> {
    let file = config::read(path)?;
    let lower = |source| StartError::Lower { path: path.to_owned(), source };
    let plan = config::lower::plan(&file).map_err(lower)?;
    plan.check()?;
    config::lower::snapshot(&file, 1, &[], &mut Names::default(), None).map_err(lower)?;
    Ok(Checked {
        counts: [
            ("workers", plan.workers.len()),
            ("ports", plan.ports.len()),
            ("tenants", file.tenant.len()),
            ("rules", file.rule.len()),
            ("volumes", file.volume.len()),
            ("groups", file.group.len()),
        ],
    })
}

impl Daemon {
    /// Reads the file and starts the node.
    pub fn start(path: &Path) -> Result<Daemon, StartError> {
        let file = config::read(path)?;
        let lower = |source| StartError::Lower { path: path.to_owned(), source };
        let plan = config::lower::plan(&file).map_err(lower)?;
        let mut names = Names::default();
        let snapshot = config::lower::snapshot(&file, 1, &[], &mut names, None).map_err(lower)?;
        let node = Node::start(plan, snapshot)?;
        Ok(Daemon { path: path.to_owned(), node, state: Mutex::new(State { file, names, version: 1 }) })
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Calls `see` with the file that runs and the numbers of its names.
    pub fn with_config<T>(&self, see: impl FnOnce(&File, &Names) -> T) -> T {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        see(&state.file, &state.names)
    }

    /// Reads the file again and goes over to it while traffic flows. Returns the version that now runs.
    pub fn reload(&self) -> Result<u64, ReloadError> {
        let file = config::read(&self.path)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_fixed(&state.file, &file)?;
        let version = self.publish(&mut state, file)?;
        info!(version, "configuration reloaded");
        Ok(version)
    }

    /// Builds the snapshot anew for the ports as they are now.
    pub fn refresh(&self) -> Result<u64, ReloadError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let file = state.file.clone();
        self.publish(&mut state, file)
    }

    fn publish(&self, state: &mut State, file: File) -> Result<u64, ReloadError> {
        let version = state.version + 1;
        let mut names = state.names.clone();
        let before = self.node.snapshot();
        let snapshot =
            config::lower::snapshot(&file, version, &self.caps(), &mut names, Some(&before.tables))
                .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        self.node.publish(snapshot)?;
        *state = State { file, names, version };
        if self.node.wait_running(version, CONFIRM) {
            Ok(version)
        } else {
            Err(ReloadError::Unconfirmed { version })
        }
    }

    fn caps(&self) -> Vec<Option<PortCaps>> {
        let caps = |state| match state {
            PortState::Up { caps } => Some(caps),
            PortState::Down { .. } => None,
        };
        self.node.port_states().into_iter().map(caps).collect()
    }

    /// What a restart alone can change must be as it runs.
    fn check_fixed(&self, old: &File, new: &File) -> Result<(), ReloadError> {
        // The file's own text form is what a person compares too.
        let same = |a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| format!("{a:?}") == format!("{b:?}");
        let parts: [(&'static str, bool); 6] = [
            ("[node]", same(&old.node, &new.node)),
            ("[frames]", same(&old.frames, &new.frames)),
            ("[[worker]]", same(&old.worker, &new.worker)),
            ("[[port]]", same(&old.port, &new.port)),
            ("[trap]", same(&old.trap, &new.trap)),
            ("the set of ports that are underlays", underlays(old) == underlays(new)),
        ];
        if let Some((what, _)) = parts.into_iter().find(|(_, same)| !same) {
            return Err(ReloadError::Restart { what });
        }
        let room = self.node.plan().volumes_max as usize;
        if new.volume.len() > room {
            return Err(ReloadError::Restart { what: "the number of volumes that there is room for" });
        }
        Ok(())
    }

    /// Stops the node; ports are closed and everything that waits is dropped and counted.
    pub fn stop(self) {
        let last = self.node.stop();
        for (worker, counters) in last.iter().enumerate() {
            let turn = counters.turn;
            info!(worker, rx = turn.rx, tx = turn.tx, delivered = turn.delivered, dropped = turn.dropped, "stopped");
        }
    }
}

fn underlays(file: &File) -> Vec<&str> {
    file.underlay.iter().map(|underlay| underlay.port.as_str()).collect()
}
