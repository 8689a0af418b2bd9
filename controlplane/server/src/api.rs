//! What people and programs can ask over HTTP, in JSON.
//!
//! One route changes things: `POST /v1/requests` takes a [`contract::Request`], the same words as everywhere else,
//! with its idempotency key and expected revision (docs/decisions/049). Everything else reads ([`objects`] by sort). Policies have
//! routes of their own ([`crate::policies`]), since components are bytes. [`openapi`] tells all of it to programs.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Extension, Json, Router};
use contract::{Answer, Node, NodeState, Refused, Request, Volume};
use control_core::Core;
use control_core::explain::About;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{KeyRange, Store, StoreError, WatchError};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::audit::Audit;
use crate::doors::Peer;
use crate::driver::{Busy, CORE, Driver};
use crate::nodes::{self, Live};
use crate::openapi::{self, Route};
use crate::said::{Asked, Body, Named};
use crate::{objects, policies};

/// Longest body, bytes; a tenant with all the rules that it may have fits. Components of policies have a bound of
/// their own.
const BODY_BYTES_MAX: usize = 2 << 20;
/// Longest request as it is kept; one with the most and the longest rules has room.
pub const REQUEST_BYTES_MAX: usize = 640 << 10;
// It is kept as asked for and as what was made of it, with what else is kept of either.
const _: () = assert!(2 * (REQUEST_BYTES_MAX + (64 << 10)) <= store::TRANSACTION_BYTES_MAX);
const _: () = assert!(REQUEST_BYTES_MAX + (64 << 10) <= store::VALUE_BYTES_MAX);
/// Watches at a time; each has a thread that waits.
const WATCHES_MAX: usize = 64;
/// How long a watch waits before it looks whether its client is still there.
const WATCH_PATIENCE: Duration = Duration::from_secs(1);

/// What every handler can reach.
#[derive(Clone)]
pub struct Shell {
    /// The core.
    pub driver: Driver,
    /// Live figures.
    pub live: Live,
    /// The store, for watches.
    pub store: Arc<dyn Store>,
    /// Who asked for what.
    pub audit: Arc<Audit>,
    /// Policies.
    pub policies: policies::Policies,
    /// Places for watches.
    pub watches: Arc<Semaphore>,
}

impl Shell {
    /// Places for watches.
    pub fn watches() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(WATCHES_MAX))
    }
}

/// All routes but the nodes' links, which are gRPC.
pub fn routes() -> Vec<Route> {
    let change = Route::post("/v1/requests", change)
        .about("Change something: the one route that does, but for policies")
        .takes::<Request>()
        .answers::<Answer>()
        .refuses([StatusCode::NOT_FOUND, StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS]);
    let explain = Route::get("/v1/explain/{*id}", explain)
        .about("Why something is as it is; the id is like operation/7, volume/disk, lease/3, node/one or event/4")
        .answers::<contract::Explanation>()
        .refuses([StatusCode::UNPROCESSABLE_ENTITY]);
    let watch = Route::get("/v1/watch", watch)
        .about(
            "Changes as they happen; the id of each event is the revision, events of the name error end it",
        )
        .asks::<Begin>()
        .header("Last-Event-ID", "Go on after this revision")
        .streams::<Changes>()
        .refuses([StatusCode::GONE, StatusCode::TOO_MANY_REQUESTS]);
    let live = Route::get("/v1/live", live).about("What nodes said last").answers::<contract::Live>();
    let status =
        Route::get("/v1/status", status).about("How the control plane is").answers::<contract::Status>();
    let document = Route::get("/v1/openapi.json", document).about("This document");
    let mut all = vec![change, explain, watch, live, status, document];
    all.extend(objects::routes());
    all.extend(policies::routes());
    all
}

/// Answers all routes.
pub fn router() -> Router<Shell> {
    openapi::router(routes())
        .route(southbound::PATH, any(nodes::link))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .fallback(async || {
            refusal(StatusCode::NOT_FOUND, "there is no such route; GET /v1/openapi.json has all of them")
        })
        .method_not_allowed_fallback(async || {
            let what = "the route is there, but not with this method; GET /v1/openapi.json has all of them";
            refusal(StatusCode::METHOD_NOT_ALLOWED, what)
        })
}

async fn document() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| openapi::text(&openapi::document(&routes())));
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// How the API says no.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Refusal {
    /// What is wrong and what to do.
    error: String,
}

/// A refusal with its status.
pub type No = (StatusCode, Json<Refusal>);

/// Says no.
pub fn refusal(status: StatusCode, what: impl Into<String>) -> No {
    (status, Json(Refusal { error: what.into() }))
}

impl From<Busy> for Refusal {
    fn from(busy: Busy) -> Refusal {
        Refusal { error: busy.to_string() }
    }
}

/// The core has too much to do.
pub fn busy(busy: Busy) -> No {
    (StatusCode::SERVICE_UNAVAILABLE, Json(busy.into()))
}

/// The store did not do what it was asked.
pub fn store_failed(error: &StoreError) -> No {
    let status = match error {
        StoreError::Away(_) => StatusCode::SERVICE_UNAVAILABLE,
        StoreError::Failed(_) | StoreError::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refusal(status, error.to_string())
}

fn status_of(refused: &Refused) -> StatusCode {
    match refused {
        Refused::NotFound(_) => StatusCode::NOT_FOUND,
        Refused::Exists(_)
        | Refused::Revision { .. }
        | Refused::KeyReused
        | Refused::Conflict(_)
        | Refused::NoRoom { .. } => StatusCode::CONFLICT,
        Refused::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
    }
}

async fn change(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Body(request): Body<Request>,
) -> Result<Json<Answer>, No> {
    let asked = serde_json::to_value(&request).unwrap_or(Value::Null);
    // As the store would keep it, with its answer.
    if asked.to_string().len() > REQUEST_BYTES_MAX {
        let what = format!("the request is longer than {REQUEST_BYTES_MAX} bytes; ask for less at a time");
        return Err(refusal(StatusCode::UNPROCESSABLE_ENTITY, what));
    }
    let outcome = match shell.driver.request(request).await {
        Ok(outcome) => outcome,
        Err(why) => {
            if matches!(why, Busy::Away(_)) {
                shell.audit.write(&peer, asked, json!({ "not_known": why.to_string() }));
            }
            return Err(busy(why));
        }
    };
    let told = match &outcome {
        Ok(answer) => json!({ "done": answer }),
        Err(refused) => json!({ "refused": refused.to_string() }),
    };
    shell.audit.write(&peer, asked, told);
    outcome.map(Json).map_err(|refused| refusal(status_of(&refused), refused.to_string()))
}

async fn explain(State(shell): State<Shell>, Named(id): Named) -> Result<Json<contract::Explanation>, No> {
    let asked = id.clone();
    let explained = shell.driver.look(move |core| {
        let about = asked.parse().or_else(|error| named(core, &asked).ok_or(error))?;
        Ok(core.explain(about))
    });
    let explained = explained.await.map_err(busy)?.map_err(|error: contract::IdError| {
        if matches!(id.split_once('/'), Some(("volume" | "node", _))) {
            return objects::missing(&id);
        }
        refusal(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    })?;
    explained.map(Json).ok_or_else(|| objects::missing(&id))
}

/// What has a name, by that.
fn named(core: &Core, text: &str) -> Option<About> {
    match text.split_once('/')? {
        ("volume", name) => objects::find::<Volume>(core, name).map(|volume| About::Volume(volume.id)),
        ("node", name) => objects::find::<Node>(core, name).map(|node| About::Node(node.id)),
        _ => None,
    }
}

async fn live(State(shell): State<Shell>) -> Json<contract::Live> {
    let said = |(name, latest): (contract::Name, nodes::Latest)| {
        let contract::NodeReport { running, utilisation_ppm, incarnation, seq, steps, .. } = latest.report;
        let volumes = latest.volumes.into_values().collect();
        (name.to_string(), contract::LiveNode { running, utilisation_ppm, incarnation, seq, steps, volumes })
    };
    Json(contract::Live { nodes: shell.live.all().into_iter().map(said).collect() })
}

async fn status(State(shell): State<Shell>) -> Result<Json<contract::Status>, No> {
    let alarms = shell.driver.alarms().all();
    let status = shell.driver.look(move |core| {
        let counters = core.counters();
        let open = core.operations().filter(|one| !one.phase.is_over());
        contract::Status {
            start: core.start(),
            now_ms: core.now_ms(),
            tenants: core.tenants().count() as u64,
            nodes: core.nodes().count() as u64,
            nodes_lost: core.nodes().filter(|node| node.state == NodeState::Lost).count() as u64,
            volumes: core.volumes().count() as u64,
            operations_open: open.count() as u64,
            leases: core.leases().count() as u64,
            decisions: counters.decisions,
            decided_natively_instead: counters.native_instead,
            answers_late: counters.late_answers,
            reports: counters.reports,
            reports_dropped: counters.reports_dropped,
            alarms,
        }
    });
    Ok(Json(status.await.map_err(busy)?))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Begin {
    /// Revision of the store to begin with; default: what changes from now on
    #[schemars(with = "u64")]
    from: Option<u64>,
    /// Only objects under this, like volume/
    prefix: String,
}

/// What changed together.
#[derive(Serialize, JsonSchema)]
struct Changes {
    /// Of the store.
    revision: u64,
    changes: Vec<Changed>,
}

/// What changed.
#[derive(Serialize, JsonSchema)]
struct Changed {
    /// Like `volume/7`; ids have leading zeros.
    key: String,
    /// As it is now; none = it is gone.
    object: Option<Value>,
}

/// Changes as server-sent events, each with the store's revision as its id; `Last-Event-ID` goes on where it was.
async fn watch(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Asked(begin): Asked<Begin>,
) -> Result<Response, No> {
    let Ok(permit) = Arc::clone(&shell.watches).try_acquire_owned() else {
        let what = format!("there are {WATCHES_MAX} watches; end one");
        return Err(refusal(StatusCode::TOO_MANY_REQUESTS, what));
    };
    // Who names what cannot be must not miss changes without a word.
    let last = |value: &HeaderValue| {
        let last: Option<u64> = value.to_str().ok().and_then(|text| text.parse().ok());
        last.ok_or_else(|| refusal(StatusCode::BAD_REQUEST, "Last-Event-ID is the id of an event, a number"))
    };
    let last = headers.get("last-event-id").map(last).transpose()?;
    let from = last.map(|last| last.saturating_add(1)).or(begin.from);
    let range = KeyRange::prefix(&format!("{CORE}{}", begin.prefix));
    let store = Arc::clone(&shell.store);
    // A store elsewhere may take its time.
    let begun = tokio::task::spawn_blocking(move || {
        let from = match from {
            Some(revision) => revision,
            None => store.revision()? + 1,
        };
        store.watch(range, from)
    });
    let begun =
        begun.await.map_err(|failure| refusal(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()))?;
    let mut watch = begun.map_err(|error| match error {
        WatchError::Compacted { .. } => refusal(StatusCode::GONE, error.to_string()),
        WatchError::Store(error) => store_failed(&error),
    })?;
    let (to, events) = mpsc::channel::<Result<Event, std::convert::Infallible>>(16);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        while !to.is_closed() {
            let batches = match watch.next(WATCH_PATIENCE) {
                Ok(batches) => batches,
                Err(error) => {
                    // The client reads the range again and comes back; it may be gone by now.
                    let _ = to.blocking_send(Ok(Event::default().event("error").data(error.to_string())));
                    return;
                }
            };
            for batch in batches {
                let event =
                    Event::default().id(batch.revision.to_string()).event("change").data(told(&batch));
                if to.blocking_send(Ok(event)).is_err() {
                    return;
                }
            }
        }
    });
    Ok(Sse::new(ReceiverStream::new(events)).keep_alive(KeepAlive::default()).into_response())
}

fn told(batch: &store::Batch) -> String {
    let changes = batch
        .changes
        .iter()
        .map(|change| {
            let object = change.entry.as_ref().map(|entry| {
                let record: Value = serde_json::from_slice(&entry.value).unwrap_or(Value::Null);
                // A record is an object with the one key that says its sort.
                record.as_object().and_then(|record| record.values().next().cloned()).unwrap_or(record)
            });
            Changed { key: change.key.strip_prefix(CORE).unwrap_or(&change.key).to_owned(), object }
        })
        .collect();
    // INVARIANT: texts, numbers and values of JSON can be said in JSON.
    serde_json::to_string(&Changes { revision: batch.revision, changes }).unwrap_or_default()
}
