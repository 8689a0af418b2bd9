//! Who decides: the policies of `policies/host`, one thread for each kind of decision.
//!
//! A question of the core goes to the thread of its kind, the answer comes back to the core. Components lie as files
//! beside the store, under their digests ([`files`]); what is active and was before it ([`stored`]), and what it has come
//! to ([`kept`]), stands in the store, so a control plane that starts again decides and goes back as before. The shipped
//! policies are there from the beginning, and none of them is active.
//!
//! Invariants: the core never waits for a policy; a question for which there is no place is answered by the core
//! itself when its time is over; what the API says is active is active on every thread.

mod files;
mod kept;
mod stored;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{DefaultBodyLimit, State};
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::{Extension, Json};
use contract::PolicyKind;
use crossbeam_channel::{Receiver, Sender, bounded};
use host::log::{DecisionRecord, LogOptions};
use host::{
    ActivateError, Cache, Candidate, Config, Engine, Gate, Limits, Options, Policy, Seat, Start, Trust,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Store, StoreError};
use tokio::sync::Semaphore;
use tracing::{error, warn};
use verdict::{Decide, Kind, Question};

use crate::alarms::Alarms;
use crate::api::{No, Shell, refusal, store_failed};
use crate::doors::Peer;
use crate::driver::Driver;
use crate::openapi::Route;
use crate::said::{Asked, Body, Raw};

/// Questions that wait for each thread.
const QUEUE: usize = 256;
/// Largest component that is taken, bytes.
const COMPONENT_BYTES_MAX: usize = 16 << 20;
/// Decisions of one answer.
const LOG_MAX: usize = 1_000;

/// See the module's documentation; clones are the same.
#[derive(Clone)]
pub struct Policies(Arc<Inner>);

struct Inner {
    host: host::Policies,
    folder: PathBuf,
    log: PathBuf,
    /// One who reads the log; it may be long.
    reading: Arc<Semaphore>,
    alarms: Alarms,
    store: Arc<dyn Store>,
    /// What the store says, by kind.
    stored: Mutex<BTreeMap<&'static str, stored::Stored>>,
    /// Held by who stores a state.
    keeping: Mutex<()>,
    /// Held by who pushes or removes, until the files say it too.
    changing: Mutex<()>,
    questions: BTreeMap<&'static str, Sender<control_core::Ask>>,
    /// Places of the threads, by kind.
    seats: BTreeMap<&'static str, Seat>,
}

/// Why nobody can decide.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// The folder of policies.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: std::io::Error,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] host::EngineError),
    /// The decision log.
    #[error(transparent)]
    Log(#[from] host::log::LogError),
    /// What is active.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Policies {
    /// Opens what is kept in `root` and starts the threads; answers go to `driver`. `trust` says whose policies may run
    /// besides the shipped ones.
    pub fn open(
        root: &Path,
        store: Arc<dyn Store>,
        driver: &Driver,
        trust: Trust,
    ) -> Result<Policies, PoliciesError> {
        let kept = root.join("policies");
        let log = root.join("decisions");
        let failed = |path: &Path, source| PoliciesError::Folder { path: path.to_owned(), source };
        std::fs::create_dir_all(&kept).map_err(|source| failed(&kept, source))?;
        let compiled = root.join("compiled");
        let cache = Cache::open(&compiled).map_err(|source| failed(&compiled, source))?;
        let gate = Gate { trust, cache: Some(cache) };
        let options = Options { log: Some(LogOptions::in_folder(&log)), ..Options::default() };
        let host = host::Policies::new(Engine::new(Limits::default())?, gate, options)?;
        let (mut questions, mut threads) = (BTreeMap::new(), Vec::new());
        for kind in Kind::ALL {
            let (sender, asked) = bounded(QUEUE);
            questions.insert(kind.name(), sender);
            threads.push((kind, asked));
        }
        let (folder, stored) = (kept, Mutex::default());
        let seats: BTreeMap<_, _> = Kind::ALL.iter().map(|kind| (kind.name(), host.seat())).collect();
        let policies = Policies(Arc::new(Inner {
            host,
            folder,
            log,
            reading: Arc::new(Semaphore::new(1)),
            alarms: driver.alarms(),
            store,
            stored,
            keeping: Mutex::default(),
            changing: Mutex::default(),
            questions,
            seats: seats.clone(),
        }));
        policies.restore()?;
        for ((kind, asked), seat) in threads.into_iter().zip(Kind::ALL.map(|kind| seats[kind.name()].clone()))
        {
            let (policies, driver) = (policies.clone(), driver.clone());
            std::thread::Builder::new()
                .name(format!("tidegate-{kind}"))
                .spawn(move || policies.decide(kind, &asked, seat, &driver))
                .map_err(|source| failed(root, source))?;
        }
        policies.keep_for_ever().map_err(|source| failed(root, source))?;
        let shipped = policies.clone();
        // Compiling takes a while the first time, and nothing waits for it.
        std::thread::spawn(move || shipped.push_shipped(|name| shipped.0.host.find(name).is_none()));
        Ok(policies)
    }

    /// Asks; the answer goes to the driver.
    pub fn ask(&self, ask: control_core::Ask) {
        let questions = self.0.questions.get(ask.question.kind().name());
        if questions.is_none_or(|questions| questions.try_send(ask).is_err()) {
            warn!("more questions wait than policies can answer; the native default answers this one");
        }
    }

    /// Brings back what was pushed and what was active.
    fn restore(&self) -> Result<(), PoliciesError> {
        let mut known = Vec::new();
        for kind in Kind::ALL {
            known.extend(self.read_stored(kind)?.map(|stored| (kind, stored)));
        }
        let chosen: Vec<_> = known.iter().flat_map(|(_, stored)| stored.versions()).collect();
        self.read_files(&chosen)?;
        for (kind, stored) in known {
            self.restore_kind(kind, stored);
        }
        Ok(())
    }

    /// Admits a policy and keeps it.
    fn push(&self, component: &[u8], signature: Option<[u8; 64]>, config: Config) -> Result<Arc<Policy>, No> {
        let signed = signature.as_ref().map(<[u8; 64]>::as_slice);
        let candidate = Candidate { component, signature: signed, config };
        let _alone = self.changing();
        let policy = self.0.host.push(&candidate);
        let policy = policy.map_err(|why| refusal(StatusCode::UNPROCESSABLE_ENTITY, why.to_string()))?;
        self.keep_pushed(&policy, &candidate).map_err(|why| {
            let what = format!("{why}; it is ready, but gone after a restart");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, what)
        })?;
        Ok(policy)
    }

    fn find(&self, name: &str) -> Result<Arc<Policy>, No> {
        let what =
            || format!("there is no policy {name}; `tidegate policy list` shows those that were pushed");
        self.0.host.find(name).ok_or_else(|| refusal(StatusCode::NOT_FOUND, what()))
    }

    fn activate(&self, name: &str, fresh: bool) -> Result<Activated, No> {
        let policy = self.find(name)?;
        // What is chosen outlives an upgrade, or it is not chosen.
        self.keep_chosen(&policy).map_err(|why| {
            let what = format!("{why}; nothing has changed, since it would be gone after an upgrade");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, what)
        })?;
        let start = if fresh { Start::Fresh } else { Start::Carry };
        let done = self.0.host.activate(&policy, start).map_err(conflict)?;
        self.remember(policy.kind()).map_err(unkept)?;
        Ok(done.into())
    }

    /// Removes a policy that nobody uses, with its files. Once it is not ready any more nobody can ask for this
    /// again, so the rest is done even where a part of it fails.
    fn remove(&self, name: &str) -> Result<Removed, No> {
        let _alone = self.changing();
        let policy = self.find(name)?;
        let (id, kind) = (policy.id(), policy.kind());
        self.is_removable(id, kind)?;
        let was_before = self.0.host.previous(kind).iter().any(|version| version.id() == id);
        let failed = |what: String| refusal(StatusCode::INTERNAL_SERVER_ERROR, what);
        let compiled = match self.0.host.remove(&policy) {
            Err(why @ host::RemoveError::Compiled { .. }) => Err(failed(why.to_string())),
            Err(stays) => return Err(refusal(StatusCode::CONFLICT, stays.to_string())),
            Ok(()) => Ok(()),
        };
        // A choice that waits to be restored stays as the store has it, with what was before it.
        let is_told = was_before && self.missing(kind).is_none();
        let told = if is_told { self.remember(kind).map_err(unkept) } else { Ok(()) };
        let files = self.remove_files(id).map_err(|why| {
            failed(format!("{id} is removed, and back after a restart: {why}; remove that file by hand"))
        });
        // One of that name that is part of this program is found again.
        self.push_shipped(|name| name == id.name && self.0.host.find(name).is_none());
        compiled.and(told).and(files)?;
        Ok(Removed { removed: id.to_string() })
    }

    fn is_removable(&self, id: &host::PolicyId, kind: Kind) -> Result<(), No> {
        let stays = if is_shipped(id) {
            format!("{id} is part of the control plane and stays; only what was pushed is removed")
        } else if self.missing(kind).as_ref() == Some(id) {
            // A choice that could not be restored is a choice.
            format!("{id} was chosen for {kind}; `tidegate policy rollback {kind}`, and remove it then")
        } else {
            return Ok(());
        };
        Err(refusal(StatusCode::CONFLICT, stays))
    }

    /// What is ready and its files change together.
    fn changing(&self) -> MutexGuard<'_, ()> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roll_back(&self, kind: Kind) -> Result<Activated, No> {
        // What decides in place of a choice that could not be restored is what was before that.
        if let Some(before) = self.missing(kind) {
            self.remember(kind).map_err(unkept)?;
            let (active, before) = (self.deciding(kind), before.to_string());
            return Ok(Activated { active, before, threads: 0, state_bytes: 0, held_ns: 0 });
        }
        let done = self.0.host.roll_back(kind).map_err(conflict)?;
        self.remember(kind).map_err(unkept)?;
        Ok(done.into())
    }

    /// The life of a thread.
    fn decide(&self, kind: Kind, asked: &Receiver<control_core::Ask>, mut seat: Seat, driver: &Driver) {
        for control_core::Ask { id, tick, question } in asked {
            driver.decided(id, seat.decide(tick, &question));
            // A policy that misbehaves is rolled back while it decides.
            if let Some(why) = self.0.host.take_rolled_back(kind) {
                self.0.alarms.raise(format!("{kind}: {why}"));
            }
            if !self.is_remembered(kind)
                && let Err(error) = self.remember(kind)
            {
                error!("the store does not say what is active for {kind}: {error}");
            }
        }
    }

    /// The newest decisions, oldest first.
    fn log(&self, limit: usize, kind: Option<Kind>) -> Result<Vec<Decision>, No> {
        let wanted = |question: &Question| kind.is_none_or(|kind| question.kind() == kind);
        let newest = host::log::newest(&self.0.log, limit, |one| wanted(&one.question));
        let newest = newest.map_err(|error| refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
        Ok(newest.into_iter().map(Decision::from).collect())
    }
}

/// Whether this program has it.
fn is_shipped(id: &host::PolicyId) -> bool {
    let is_plain = id.config == host::Digest::of_config(&[]);
    is_plain && shipped::all().any(|(_, component)| host::Digest::of(component) == id.digest)
}

fn conflict(why: ActivateError) -> No {
    refusal(StatusCode::CONFLICT, why.to_string())
}

fn unkept(error: StoreError) -> No {
    let (status, _) = store_failed(&error);
    refusal(status, format!("it is done, and the store does not say so after a restart: {error}"))
}

/// What became active.
#[derive(Serialize, JsonSchema)]
struct Activated {
    /// What decides now.
    active: String,
    /// What did before.
    before: String,
    /// Policy threads that went over.
    threads: usize,
    /// What was carried over.
    state_bytes: usize,
    /// How long decisions of its kind waited.
    held_ns: u64,
}

impl From<host::Activation> for Activated {
    fn from(done: host::Activation) -> Activated {
        let host::Activation { seats, state_bytes, held_ns, .. } = done;
        let (active, before) = (done.active.to_string(), done.before.to_string());
        Activated { active, before, threads: seats, state_bytes, held_ns }
    }
}

/// What is gone.
#[derive(Serialize, JsonSchema)]
struct Removed {
    removed: String,
}

/// A policy that is ready.
#[derive(Serialize, JsonSchema)]
struct Ready {
    name: String,
    version: String,
    kind: &'static str,
    digest: String,
}

/// What came of it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Shadowing {
    /// This one is asked too.
    Shadow(String),
    /// Whether one was asked until now.
    Stopped(bool),
}

/// Some decisions.
#[derive(Serialize, JsonSchema)]
struct Decisions {
    items: Vec<Decision>,
}

/// A decision that was logged.
#[derive(Serialize, JsonSchema)]
struct Decision {
    number: u64,
    function: &'static str,
    /// Name, version and digest, or `native`.
    policy: String,
    /// Its word for why.
    why: String,
    /// Why the native default decided in its place.
    instead: Option<String>,
    now_ms: u64,
    fuel: u64,
    duration_ns: u64,
}

impl From<DecisionRecord> for Decision {
    fn from(one: DecisionRecord) -> Decision {
        Decision {
            number: one.number,
            function: one.question.function(),
            policy: one.policy.as_ref().map_or("native".to_owned(), ToString::to_string),
            why: one.verdict.why().to_owned(),
            instead: one.instead.map(|instead| instead.why),
            now_ms: one.tick.now_ms,
            fuel: one.fuel,
            duration_ns: one.duration_ns,
        }
    }
}

/// Routes of policies.
pub fn routes() -> Vec<Route> {
    let list = Route::get("/v1/policies", list).about("What decides, and what is ready");
    let push = Route::post("/v1/policies", push.layer(DefaultBodyLimit::max(COMPONENT_BYTES_MAX)))
        .about("Admit a component, so that it is ready");
    let shadow =
        Route::post("/v1/policies/shadow", shadow).about("Ask a policy beside the active one, or no more");
    let activate = Route::post("/v1/policies/activate", activate).about("Have a policy decide from now on");
    let back = Route::post("/v1/policies/rollback", rollback).about("Have the version before decide again");
    let remove = Route::post("/v1/policies/remove", remove)
        .about("Remove a policy that was pushed and is not in use, with its files");
    let log = Route::get("/v1/policies/log", log).about("The newest decisions, oldest first");
    let (conflict, missing) = (StatusCode::CONFLICT, StatusCode::NOT_FOUND);
    vec![
        list.answers::<host::Status>(),
        push.asks::<Pushed>().takes_bytes().answers::<Ready>(),
        shadow.takes::<Shadowed>().answers::<Shadowing>().refuses([conflict, missing]),
        activate.takes::<Activate>().answers::<Activated>().refuses([conflict, missing]),
        back.takes::<Rollback>().answers::<Activated>().refuses([conflict]),
        remove.takes::<Remove>().answers::<Removed>().refuses([conflict, missing]),
        log.asks::<Which>().answers::<Decisions>(),
    ]
}

/// Does something that takes a while, away from the threads that answer.
async fn away<T: Send + 'static>(job: impl FnOnce() -> Result<T, No> + Send + 'static) -> Result<T, No> {
    let done = tokio::task::spawn_blocking(job).await;
    done.unwrap_or_else(|failure| Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string())))
}

fn audited(shell: &Shell, peer: &Peer, asked: Value, outcome: &Result<impl Serialize, No>) {
    let told = match outcome {
        Ok(done) => json!({ "done": done }),
        Err((status, _)) => json!({ "refused": status.as_u16() }),
    };
    shell.audit.write(peer, asked, told);
}

async fn list(State(shell): State<Shell>) -> Json<host::Status> {
    Json(shell.policies.0.host.status())
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Pushed {
    /// Its configuration: an object of texts, in JSON
    #[schemars(with = "String")]
    config: Option<String>,
    /// An Ed25519 signature of the component's bytes, in hexadecimal digits or base64
    #[schemars(with = "String")]
    signature: Option<String>,
}

async fn push(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Asked(pushed): Asked<Pushed>,
    Raw(component): Raw,
) -> Result<Json<Ready>, No> {
    let config: BTreeMap<String, String> = match &pushed.config {
        Some(text) => serde_json::from_str(text).map_err(|error| {
            refusal(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("config is an object of texts in JSON: {error}"),
            )
        })?,
        None => BTreeMap::new(),
    };
    let signature = pushed.signature.as_deref().map(|text| {
        let what =
            "signature is 64 bytes in hexadecimal digits or base64: an Ed25519 signature of the component";
        host::bytes_of::<64>(text).ok_or_else(|| refusal(StatusCode::UNPROCESSABLE_ENTITY, what))
    });
    let signature = signature.transpose()?;
    let signed = signature.is_some();
    let asked = json!({ "policy_push": { "bytes": component.len(), "config": &config, "signed": signed } });
    let policies = shell.policies.clone();
    let outcome = away(move || {
        let policy = policies.push(&component, signature, config.into_iter().collect())?;
        let id = policy.id();
        let (name, version, digest) = (id.name.clone(), id.version.clone(), id.digest.to_string());
        Ok(Ready { name, version, kind: policy.kind().name(), digest })
    });
    let outcome = outcome.await;
    audited(&shell, &peer, asked, &outcome);
    outcome.map(Json)
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Activate {
    /// Name, digest or DIGEST-CONFIGURATION.
    policy: String,
    /// Begin without the state of the version before.
    #[serde(default)]
    fresh: bool,
}

async fn activate(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<Activate>,
) -> Result<Json<Activated>, No> {
    let said = json!({ "policy_activate": &asked });
    let policies = shell.policies.clone();
    let outcome = away(move || policies.activate(&asked.policy, asked.fresh)).await;
    audited(&shell, &peer, said, &outcome);
    outcome.map(Json)
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Shadowed {
    /// Name, digest or DIGEST-CONFIGURATION; none = ask nobody beside the active one of `kind` any more.
    #[serde(default)]
    policy: Option<String>,
    /// Whose shadow ends.
    #[serde(default)]
    kind: Option<PolicyKind>,
}

async fn shadow(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<Shadowed>,
) -> Result<Json<Shadowing>, No> {
    let said = json!({ "policy_shadow": &asked });
    let policies = shell.policies.clone();
    let outcome = away(move || match (&asked.policy, &asked.kind) {
        (Some(name), _) => {
            let policy = policies.find(name)?;
            policies.0.host.shadow(&policy).map_err(conflict)?;
            Ok(Shadowing::Shadow(policy.id().to_string()))
        }
        (None, kind) => {
            let what = "say which policy to ask, or the kind whose shadow ends";
            let kind = kind.ok_or_else(|| refusal(StatusCode::UNPROCESSABLE_ENTITY, what))?;
            Ok(Shadowing::Stopped(policies.0.host.stop_shadow(kind_of(kind))))
        }
    });
    let outcome = outcome.await;
    audited(&shell, &peer, said, &outcome);
    outcome.map(Json)
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Remove {
    /// Name, digest or DIGEST-CONFIGURATION; of several the one that was pushed last.
    policy: String,
}

async fn remove(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<Remove>,
) -> Result<Json<Removed>, No> {
    let said = json!({ "policy_remove": &asked });
    let policies = shell.policies.clone();
    let outcome = away(move || policies.remove(&asked.policy)).await;
    audited(&shell, &peer, said, &outcome);
    outcome.map(Json)
}

#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// Which.
    kind: PolicyKind,
}

async fn rollback(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Body(asked): Body<Rollback>,
) -> Result<Json<Activated>, No> {
    let said = json!({ "policy_rollback": &asked });
    let kind = kind_of(asked.kind);
    let policies = shell.policies.clone();
    let outcome = away(move || policies.roll_back(kind)).await;
    audited(&shell, &peer, said, &outcome);
    outcome.map(Json)
}

fn kind_of(kind: PolicyKind) -> Kind {
    match kind {
        PolicyKind::Scheduling => Kind::Scheduling,
        PolicyKind::Leasing => Kind::Leasing,
        PolicyKind::Migration => Kind::Migration,
    }
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Which {
    /// Only decisions of this kind
    #[schemars(with = "PolicyKind")]
    kind: Option<PolicyKind>,
    /// At most so many, by default 100; more than 1000 are never given
    #[schemars(with = "u64")]
    limit: Option<usize>,
}

async fn log(State(shell): State<Shell>, Asked(which): Asked<Which>) -> Result<Json<Decisions>, No> {
    let kind = which.kind.map(kind_of);
    let policies = shell.policies.clone();
    let limit = which.limit.unwrap_or(100).min(LOG_MAX);
    // Whoever comes meanwhile waits; who gives up makes room for others only when the log is read.
    let turn = Arc::clone(&policies.0.reading).acquire_owned().await;
    let read = move || {
        let _turn = turn;
        policies.log(limit, kind)
    };
    Ok(Json(Decisions { items: away(read).await? }))
}
