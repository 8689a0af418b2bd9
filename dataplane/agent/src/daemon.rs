//! One running data plane: a configuration file, the node that runs it, and what keeps the two in step.
//!
//! The file is read whole and lowered whole before anything changes. A reload publishes a new snapshot while
//! traffic flows; what only a restart can change is refused by name. When an interface comes up, the
//! snapshot is built anew, since its address and MTU are part of it.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use contract::{RefusedRules, TenantRules};
use engine::port::PortCaps;
use engine::throttle::Saved;
use engine::{
    Arrival, ChangeError, MoveError, Moved, Node, Plan, PlanError, PortState, PublishError, Snapshot,
};
use tracing::{error, info, warn};

use crate::config::exports::Wanted;
use crate::config::{self, File, LowerError, Names, ReadError};
use crate::exports::{Applied, Exports, ExportsError, LeftOut, Retry, Served, Settings, Table};
use crate::tls::{Tls, TlsError};
use crate::traces::Traces;

/// How long workers may take to confirm a snapshot.
const CONFIRM: Duration = Duration::from_secs(30);
/// Time between two tries to have a volume go on.
const THAW_AGAIN: Duration = Duration::from_millis(10);
/// Version of the first snapshot.
const FIRST: u64 = 1;

/// See the module's documentation.
pub struct Daemon {
    path: PathBuf,
    node: Node,
    /// Read without waiting for a reload under way.
    running: ArcSwap<Running>,
    /// Held while publishing.
    publishing: Mutex<Told>,
    /// How long workers may take to confirm a snapshot.
    confirm: Duration,
    /// TLS for NBD clients from now on, if there is any.
    tls: ArcSwapOption<Tls>,
    exports: Exports,
    /// What is known of the requests that are followed.
    traces: Traces,
    /// Read without waiting for a reload under way.
    refused: ArcSwap<Vec<RefusedRules>>,
}

/// What is done for a control plane, beside what the file says.
#[derive(Debug, Default)]
struct Told {
    /// What is served.
    volumes: Vec<Wanted>,
    /// Rules of tenants, as they were said last.
    said: Vec<TenantRules>,
    /// Those of them that are carried out, and what was carried out before instead of others.
    networks: Vec<TenantRules>,
}

/// What a data plane runs, as a person named it.
#[derive(Debug)]
pub struct Running {
    /// The file.
    pub file: Arc<File>,
    /// The numbers of its names.
    pub names: Names,
    /// Version of the snapshot.
    pub version: u64,
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
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What it should serve.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// No thread.
    #[error("cannot start the thread that collects traces: {0}")]
    Thread(std::io::Error),
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
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A part that only a restart changes.
    #[error("{what} differs from what runs; that needs a restart (`systemctl restart tidegate-dataplane`)")]
    Restart {
        /// Which part.
        what: &'static str,
    },
    /// The node refuses.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// What is to be served.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// Workers are stuck.
    #[error(
        "version {version} was published, but not every worker runs it after {} s: one of them hangs, perhaps in \
         a port's kernel; `stats` shows the version that all run, a restart ends it",
        waited.as_secs()
    )]
    Unconfirmed {
        /// The version.
        version: u64,
        /// How long was waited.
        waited: Duration,
    },
}

/// Why an export stayed at its worker.
#[derive(Debug, thiserror::Error)]
pub enum MoveExportError {
    /// Nobody knows it.
    #[error("there is no export \"{name}\"{}", near.as_ref().map_or(String::new(), |near| format!("; did you mean \"{near}\"?")))]
    Unknown {
        /// What was asked for.
        name: String,
        /// A name that is like it.
        near: Option<String>,
    },
    /// The engine.
    #[error(transparent)]
    Move(#[from] MoveError),
}

/// What `check` found in a file that is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What there is, in the singular, with its number.
    pub counts: [(&'static str, usize); 7],
}

/// Validates a file, and the certificates that it names, without opening anything else.
pub fn check(path: &Path) -> Result<Checked, StartError> {
    let file = config::read(path)?;
    let (plan, _, _) = lower(path, &file)?;
    tls(&file)?;
    plan.check()?;
    Ok(Checked {
        counts: [
            ("worker", plan.workers.len()),
            ("port", plan.ports.len()),
            ("tenant", file.tenant.len()),
            ("rule", file.rule.len()),
            ("volume", file.volume.len()),
            ("group", file.group.len()),
            ("export", file.export.len()),
        ],
    })
}

/// Everything that a file says, as the engine wants it before any port is open.
fn lower(path: &Path, file: &File) -> Result<(Plan, Snapshot, Names), StartError> {
    let lowered = || {
        config::lower::metrics_address(file)?;
        config::exports::listen(file)?;
        config::exports::listen_nvme(file)?;
        config::exports::wanted(file)?;
        config::exports::controllers(file)?;
        config::traces::collector(file)?;
        let plan = config::lower::plan(file)?;
        let mut names = Names::default();
        let snapshot = config::lower::snapshot(file, &[], FIRST, &[], &mut names, None)?;
        Ok((plan, snapshot, names))
    };
    lowered().map_err(|source| StartError::Lower { path: path.to_owned(), source })
}

fn tls(file: &File) -> Result<Option<Arc<Tls>>, TlsError> {
    file.nbd.tls.as_ref().map(|from| Tls::load(from).map(Arc::new)).transpose()
}

impl Daemon {
    /// Starts the node of a file that was read from `path`.
    pub fn start(path: &Path, file: File) -> Result<Daemon, StartError> {
        let (plan, snapshot, names) = lower(path, &file)?;
        let lowered = |source| StartError::Lower { path: path.to_owned(), source };
        let wanted = config::exports::wanted(&file).map_err(lowered)?;
        let exports = Exports::new(Settings {
            hugepages: file.serve.hugepages,
            memory_bytes: file.serve.memory.0,
            controllers: config::exports::controllers(&file).map_err(lowered)?,
            can_serve: plan.serve.is_some(),
        });
        let tls = ArcSwapOption::new(tls(&file)?);
        let collector = config::traces::collector(&file)
            .map_err(|source| StartError::Lower { path: path.to_owned(), source })?;
        let node = Node::start(plan, snapshot)?;
        let traces = Traces::start(&node, collector).map_err(StartError::Thread)?;
        let mut change = exports.prepare(wanted, Retry::Yes)?;
        // Who came for exports alone and named them wrongly should see it at once.
        let serves_only = file.port.is_empty() && file.controlplane.is_none();
        if serves_only && let Some(why) = change.nothing_left() {
            return Err(why.into());
        }
        change.commit(&node, &|one| one.limits(&names))?;
        let running = ArcSwap::from_pointee(Running { file: Arc::new(file), names, version: FIRST });
        let (path, publishing) = (path.to_owned(), Mutex::default());
        let refused = ArcSwap::default();
        Ok(Daemon { path, node, running, publishing, confirm: CONFIRM, tls, exports, traces, refused })
    }

    /// What holds of TLS for clients that come now.
    pub(crate) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.load_full()
    }

    /// What is served now.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.exports.table()
    }

    /// What should be served and cannot be opened.
    pub(crate) fn left_out(&self) -> Arc<Vec<Arc<LeftOut>>> {
        self.exports.left_out()
    }

    /// The requests that are followed.
    pub(crate) fn traces(&self) -> &Traces {
        &self.traces
    }

    /// Where what is served can be seen, at any time.
    pub(crate) fn shared_table(&self) -> Arc<ArcSwap<Table>> {
        self.exports.shared()
    }

    /// Goes over to another set of volumes to serve for a control plane, beside those of the file, without touching
    /// those that are the same.
    pub fn serve(&self, told: Vec<Wanted>) -> Result<Applied, ExportsError> {
        let mut alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.running.load();
        let mut wanted = config::exports::wanted(&running.file)?;
        wanted.extend(told.iter().cloned());
        let change = self.exports.prepare(wanted, Retry::No)?;
        let applied = change.commit(&self.node, &|one| one.limits(&running.names))?;
        alone.volumes = told;
        Ok(applied)
    }

    /// Goes over to the rules that a control plane gives the file's tenants, while traffic flows. A tenant whose rules
    /// cannot be carried out keeps those that it had: [`Daemon::refused`] says whose, and why.
    pub fn carry(&self, told: &[TenantRules]) {
        let mut alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        if told == alone.said {
            return;
        }
        told.clone_into(&mut alone.said);
        let file = Arc::clone(&self.running.load().file);
        match self.publish_with_rules(&mut alone, &file) {
            Ok(_) => {}
            Err(late @ ReloadError::Unconfirmed { .. }) => warn!("rules of the control plane: {late}"),
            Err(error) => {
                let why = error.to_string();
                let all = told.iter().map(|one| RefusedRules { tenant: one.tenant, why: why.clone() });
                self.refuse(all.collect());
            }
        }
        engine::frame::trim_heap();
    }

    /// Whose rules of the control plane are not carried out, and why.
    pub fn refused(&self) -> Arc<Vec<RefusedRules>> {
        self.refused.load_full()
    }

    fn refuse(&self, refused: Vec<RefusedRules>) {
        for RefusedRules { tenant, why } in &refused {
            error!(%tenant, "rules of the control plane are not carried out: {why}");
        }
        self.refused.store(Arc::new(refused));
    }

    /// Publishes a file with the rules that the control plane said last. Instead of what cannot be carried out of those a
    /// tenant has what it had; a file with which that cannot be carried out either is refused.
    fn publish_with_rules(
        &self,
        alone: &mut MutexGuard<'_, Told>,
        file: &Arc<File>,
    ) -> Result<u64, ReloadError> {
        let mut networks = alone.said.clone();
        let mut refused: Vec<RefusedRules> = Vec::new();
        let outcome = loop {
            let outcome = self.publish(alone, &networks, Arc::clone(file));
            let Err(ReloadError::Lower { source: LowerError::Told { tenant, source, .. }, .. }) = &outcome
            else {
                break outcome;
            };
            let Some(at) = networks.iter().position(|one| one.tenant == *tenant) else { break outcome };
            refused.push(RefusedRules { tenant: *tenant, why: source.to_string() });
            match alone.networks.iter().find(|one| one.tenant == *tenant) {
                Some(had) if networks[at] == *had => break outcome,
                Some(had) => networks[at] = had.clone(),
                None => drop(networks.remove(at)),
            }
        };
        // What is not confirmed yet runs all the same, sooner or later.
        if matches!(outcome, Ok(_) | Err(ReloadError::Unconfirmed { .. })) {
            alone.networks = networks;
            self.refuse(refused);
        }
        outcome
    }

    /// Hands a client to the worker that owns what it chose.
    pub(crate) fn connect(&self, arrival: Arrival) {
        let volume = arrival.guest.volume();
        // What is not in the table was let go while the client was on its way.
        if let Some(worker) = self.table().worker(volume)
            && !self.node.connect(worker, arrival)
        {
            warn!(worker, "a client came for a worker that has ended");
        }
    }

    /// Has a volume take room ahead, see [`Node::expand`].
    pub(crate) fn expand(&self, name: &str) -> Result<(), ChangeError> {
        let served = self.served(name)?;
        self.node.expand(served.wanted.worker, served.volume)
    }

    /// Has a volume admit nothing any more, see [`Node::freeze`].
    pub(crate) fn freeze(&self, name: &str, durable: bool) -> Result<Saved, ChangeError> {
        let served = self.served(name)?;
        self.node.freeze(served.wanted.worker, served.volume, durable)
    }

    /// Has a frozen volume go on. One that is on its way to another worker is told when it is there: its hosts wait.
    pub(crate) fn thaw(&self, name: &str) -> Result<(), ChangeError> {
        let end = Instant::now() + CONFIRM;
        loop {
            let served = self.served(name)?;
            match self.node.thaw(served.wanted.worker, served.volume) {
                Err(ChangeError::Busy) if Instant::now() < end => std::thread::sleep(THAW_AGAIN),
                other => return other,
            }
        }
    }

    fn served(&self, name: &str) -> Result<Arc<Served>, ChangeError> {
        let table = self.table();
        table.served.iter().find(|one| one.wanted.name == name).cloned().ok_or(ChangeError::Unknown)
    }

    /// Hands an export over to another worker, with its clients, while they use it.
    pub fn move_export(&self, name: &str, worker: usize) -> Result<Moved, MoveExportError> {
        // Not in the middle of a reload, which speaks to the workers that volumes are at.
        let _alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        let known = || table.served.iter().map(|one| one.wanted.name.as_str());
        let export = table.served.iter().find(|one| one.wanted.name == name);
        let volume = export.map(|one| one.volume).ok_or_else(|| MoveExportError::Unknown {
            name: name.to_owned(),
            near: config::nearest(name, known()).map(str::to_owned),
        })?;
        let moved = self.node.move_volume(volume, worker)?;
        let Moved { pause_ns, drain_ns, connections } = moved;
        let (pause_us, drain_us) = (pause_ns / 1000, drain_ns / 1000);
        info!(export = name, worker, pause_us, drain_us, connections, "moved to another worker");
        Ok(moved)
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What runs, or is about to: the version published last.
    pub fn running(&self) -> Arc<Running> {
        self.running.load_full()
    }

    /// Reads the file again and goes over to it while traffic flows. Returns the version that now runs, and what became
    /// of the exports.
    pub fn reload(&self) -> Result<(u64, Applied), ReloadError> {
        let outcome = self.read_and_publish();
        // Reading and lowering a large file takes much more memory than what comes of it.
        engine::frame::trim_heap();
        outcome
    }

    fn read_and_publish(&self) -> Result<(u64, Applied), ReloadError> {
        let file = config::read(&self.path)?;
        let mut alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        check_fixed(&self.running.load().file, &file)?;
        let plan = config::lower::plan(&file)
            .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        // The keys are the same, but generated frames are made of a tenant's addresses.
        let mut ports = plan.ports.iter().zip(&self.node.plan().ports);
        if ports.any(|(new, old)| new.spec != old.spec) {
            return Err(ReloadError::Restart { what: "what a generator sends" });
        }
        let mut wanted = config::exports::wanted(&file)
            .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        wanted.extend(alone.volumes.iter().cloned());
        config::exports::listen(&file)
            .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        let collector = config::traces::collector(&file)
            .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        let tls = tls(&file)?;
        let change = self.exports.prepare(wanted, Retry::Yes)?;
        let version = self.publish_with_rules(&mut alone, &Arc::new(file))?;
        self.tls.store(tls);
        self.traces.collected().set_config(collector);
        let running = self.running.load();
        let applied = change.commit(&self.node, &|one| one.limits(&running.names))?;
        info!(version, "configuration reloaded{applied}");
        Ok((version, applied))
    }

    /// Builds the snapshot anew for the ports as they are now.
    pub fn refresh(&self) -> Result<u64, ReloadError> {
        let mut alone = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let file = Arc::clone(&self.running.load().file);
        let outcome = self.publish_with_rules(&mut alone, &file);
        engine::frame::trim_heap();
        outcome
    }

    fn publish(
        &self,
        _alone: &MutexGuard<'_, Told>,
        networks: &[TenantRules],
        file: Arc<File>,
    ) -> Result<u64, ReloadError> {
        let running = self.running.load();
        let version = running.version + 1;
        let mut names = running.names.clone();
        let before = self.node.snapshot();
        let snapshot =
            config::lower::snapshot(&file, networks, version, &self.caps(), &mut names, Some(&before.tables))
                .map_err(|source| ReloadError::Lower { path: self.path.clone(), source })?;
        if names.volumes.end() > self.node.plan().volumes_max {
            return Err(ReloadError::Restart { what: "the number of volumes that there is room for" });
        }
        self.node.publish(snapshot)?;
        self.running.store(Arc::new(Running { file, names, version }));
        if self.node.wait_running(version, self.confirm) {
            Ok(version)
        } else if let Some(worker) = self.node.dead() {
            Err(PublishError::WorkerGone(worker).into())
        } else {
            Err(ReloadError::Unconfirmed { version, waited: self.confirm })
        }
    }

    fn caps(&self) -> Vec<Option<PortCaps>> {
        let caps = |states: Vec<PortState>| {
            states.into_iter().find_map(|state| match state {
                PortState::Up { caps } => Some(caps),
                PortState::Down { .. } => None,
            })
        };
        self.port_states().into_iter().map(caps).collect()
    }

    /// The states of each port of the file, one for each worker that polls it.
    pub fn port_states(&self) -> Vec<Vec<PortState>> {
        let mut states = vec![Vec::new(); self.running.load().file.port.len()];
        for (port, state) in self.node.plan().ports.iter().zip(self.node.port_states()) {
            if let Some(states) = states.get_mut(usize::from(port.id.0)) {
                states.push(state);
            }
        }
        states
    }

    /// Stops the node; ports are closed and everything that waits is dropped and counted.
    pub fn stop(self) {
        let last = self.node.stop();
        for (worker, counters) in last.iter().enumerate() {
            let turn = counters.turn;
            info!(
                worker,
                rx = turn.rx,
                tx = turn.tx,
                delivered = turn.delivered,
                dropped = turn.dropped,
                "stopped"
            );
        }
    }
}

/// What a restart alone can change must be as it runs.
fn check_fixed(old: &File, new: &File) -> Result<(), ReloadError> {
    let same = |a: &dyn Debug, b: &dyn Debug| format!("{a:?}") == format!("{b:?}");
    let parts: [(&'static str, bool); 9] = [
        ("[controlplane]", same(&old.controlplane, &new.controlplane)),
        ("[node]", same(&old.node, &new.node)),
        ("[frames]", same(&old.frames, &new.frames)),
        ("[[worker]]", same(&old.worker, &new.worker)),
        ("[[port]]", same(&old.port, &new.port)),
        ("trace.records", old.trace.records == new.trace.records),
        ("[trap]", same(&old.trap, &new.trap)),
        ("the set of ports that are underlays", underlays(old) == underlays(new)),
        ("[serve], [nbd] or [nvme]", config::exports::same(old, new)),
    ];
    match parts.into_iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(ReloadError::Restart { what }),
        None => Ok(()),
    }
}

fn underlays(file: &File) -> BTreeSet<&str> {
    file.underlay.iter().map(|underlay| underlay.port.as_str()).collect()
}

#[cfg(test)]
mod tests {
    //! A worker that hangs in the middle of a turn.

    use super::*;
    use std::process::Command;

    /// The port is recorded to a pipe that nobody reads: when it is full, the worker hangs in the kernel.
    #[test]
    fn a_reload_that_a_worker_does_not_confirm_is_told() {
        let folder = std::env::temp_dir().join(format!("tidegate-hang-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (pipe, path) = (folder.join("pipe"), folder.join("hang.toml"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Open both ways so that nobody waits for the other end.
        let holder = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        let text = format!(
            "[frames]\ncount = 1024\njumbo_count = 8\nhugepages = false\n\
             [[port]]\nname = \"load\"\ndriver = \"generator\"\nframe_bytes = 1400\n\
             record = {{ file = \"{}\" }}\n\
             [[port]]\nname = \"uplink\"\ndriver = \"sink\"\n\
             [[underlay]]\nport = \"uplink\"\naddresses = [\"192.0.2.1/24\"]\nmac = \"02:00:00:00:09:01\"\n\
             [[tenant]]\nname = \"blue\"\nvni = 1\n\
             attachments = [{{ port = \"load\", sources = [{{ ip = \"10.0.0.1\", mac = \"02:00:00:00:00:01\" }}] }}]\n\
             remotes = [{{ ip = \"10.0.0.2\", mac = \"02:00:00:00:00:02\", vtep = \"192.0.2.2\" }}]\n",
            pipe.display()
        );
        std::fs::write(&path, &text).unwrap();
        let mut daemon = Daemon::start(&path, config::read(&path).unwrap()).unwrap();
        daemon.confirm = Duration::from_millis(50);
        // Until the pipe is full, reloads are confirmed; the first one that is not must come.
        let end_of_patience = std::time::Instant::now() + Duration::from_secs(60);
        let refused = loop {
            match daemon.reload() {
                Ok(_) => assert!(std::time::Instant::now() < end_of_patience, "the worker never hung"),
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, ReloadError::Unconfirmed { .. }), "{refused}");
        // Somebody reads until the daemon closes its end: the worker goes on, and confirms late.
        let mut reader = std::fs::File::open(&pipe).unwrap();
        drop(holder);
        let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let version = daemon.running().version;
        assert!(daemon.node().wait_running(version, Duration::from_secs(60)), "it goes on");
        daemon.stop();
        drain.join().unwrap().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
