//! What people and programs can ask over HTTP, in JSON.
//!
//! One route changes things: `POST /v1/requests` takes a [`contract::Request`], the same words as everywhere else,
//! with its idempotency key and expected revision (docs/decisions/049). Everything else reads. Policies have
//! routes of their own ([`crate::policies`]), since components are bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Json, Router};
use contract::{Answer, Refused, Request};
use control_core::Core;
use control_core::explain::About;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{KeyRange, Store, WatchError};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::audit::Audit;
use crate::doors::Peer;
use crate::driver::{Busy, CORE, Driver};
use crate::nodes::{self, Live};
use crate::policies;

/// Objects of one answer at most, and by default.
const LIST_MAX: usize = 10_000;
const LIST_DEFAULT: usize = 1_000;
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

/// All routes.
pub fn routes() -> Router<Shell> {
    Router::new()
        .route("/v1/requests", post(change))
        .route("/v1/explain/{*id}", get(explain))
        .route("/v1/watch", get(watch))
        .route("/v1/live", get(live))
        .route("/v1/status", get(status))
        .route("/v1/{sort}", get(list))
        .route("/v1/{sort}/{id}", get(one))
        .merge(policies::routes())
        .route(southbound::PATH, any(nodes::link))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "there is no such route; `tidegate` knows them"))
}

/// How the API says no.
#[derive(Debug, Serialize)]
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

fn status_of(refused: &Refused) -> StatusCode {
    match refused {
        Refused::NotFound(_) => StatusCode::NOT_FOUND,
        Refused::Exists(_) | Refused::Revision { .. } | Refused::KeyReused | Refused::Conflict(_) => {
            StatusCode::CONFLICT
        }
        Refused::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        Refused::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        Refused::NoRoom { .. } => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn change(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    Json(request): Json<Request>,
) -> Result<Json<Answer>, No> {
    let asked = serde_json::to_value(&request).unwrap_or(Value::Null);
    let outcome = shell.driver.request(request).await.map_err(busy)?;
    let told = match &outcome {
        Ok(answer) => json!({ "done": answer }),
        Err(refused) => json!({ "refused": refused.to_string() }),
    };
    shell.audit.write(&peer, asked, told);
    outcome.map(Json).map_err(|refused| refusal(status_of(&refused), refused.to_string()))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Which {
    /// Only ids above this one.
    after: u64,
    /// At most so many.
    limit: Option<usize>,
}

/// Some objects, by id.
#[derive(Serialize)]
struct Items {
    items: Vec<Value>,
    /// There are more: go on with `after` = the last id.
    more: bool,
}

async fn list(
    State(shell): State<Shell>,
    Path(sort): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<Items>, No> {
    let limit = which.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let found =
        shell.driver.look(move |core| objects(core, &sort, which.after, limit)).await.map_err(busy)?;
    let mut items = found.ok_or_else(|| refusal(StatusCode::NOT_FOUND, UNKNOWN_SORT))?;
    let more = items.len() > limit;
    items.truncate(limit);
    Ok(Json(Items { items, more }))
}

const UNKNOWN_SORT: &str = "there are tenants, nodes, volumes, events, operations, leases and limits";

/// One more than `limit`, if there are so many.
fn objects(core: &Core, sort: &str, after: u64, limit: usize) -> Option<Vec<Value>> {
    fn some<'a, T: Serialize + 'a>(
        all: impl Iterator<Item = &'a T>,
        id: impl Fn(&T) -> u64,
        after: u64,
        limit: usize,
    ) -> Vec<Value> {
        let wanted = all.filter(|one| id(one) > after).take(limit + 1);
        // What the contract has can be said in JSON.
        wanted.map(|one| serde_json::to_value(one).unwrap_or(Value::Null)).collect()
    }
    Some(match sort {
        "tenants" => some(core.tenants(), |one| one.id.0, after, limit),
        "nodes" => some(core.nodes(), |one| one.id.0, after, limit),
        "volumes" => some(core.volumes(), |one| one.id.0, after, limit),
        "events" => some(core.events(), |one| one.id.0, after, limit),
        "operations" => some(core.operations(), |one| one.id.0, after, limit),
        "leases" => some(core.leases(), |one| one.id.0, after, limit),
        // They have no number.
        "limits" => some(core.limits(), |_| u64::MAX, after, limit),
        _ => return None,
    })
}

async fn one(
    State(shell): State<Shell>,
    Path((sort, id)): Path<(String, String)>,
) -> Result<Json<Value>, No> {
    let found = shell.driver.look(move |core| object(core, &sort, &id)).await.map_err(busy)?;
    found.map(Json).ok_or_else(|| refusal(StatusCode::NOT_FOUND, "there is none of that id or name"))
}

/// One object by its id, written `7` or `volume/7`, or by its name.
fn object(core: &Core, sort: &str, id: &str) -> Option<Value> {
    fn found<T: Serialize>(one: Option<&T>) -> Option<Value> {
        one.and_then(|one| serde_json::to_value(one).ok())
    }
    let number: Option<u64> = id.parse().ok();
    match sort {
        "tenants" => found(
            core.tenants().find(|one| number.map_or(one.name.as_str() == id, |number| one.id.0 == number)),
        ),
        "nodes" => found(
            core.nodes().find(|one| number.map_or(one.info.name.as_str() == id, |number| one.id.0 == number)),
        ),
        "volumes" => found(
            core.volumes().find(|one| number.map_or(one.name.as_str() == id, |number| one.id.0 == number)),
        ),
        "events" => found(core.event(contract::EventId(number?))),
        "operations" => found(core.operation(contract::OperationId(number?))),
        "leases" => found(core.lease(contract::LeaseId(number?))),
        _ => None,
    }
}

async fn explain(
    State(shell): State<Shell>,
    Path(id): Path<String>,
) -> Result<Json<contract::Explanation>, No> {
    let about: About = id
        .parse()
        .map_err(|error: contract::IdError| refusal(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let explained = shell.driver.look(move |core| core.explain(about)).await.map_err(busy)?;
    explained.map(Json).ok_or_else(|| refusal(StatusCode::NOT_FOUND, format!("there is no {id}")))
}

async fn live(State(shell): State<Shell>) -> Json<Value> {
    let nodes: BTreeMap<String, Value> = shell
        .live
        .all()
        .into_iter()
        .map(|(name, latest)| {
            let volumes: Vec<_> = latest.volumes.values().collect();
            let report = &latest.report;
            let shown = json!({
                "running": report.running,
                "utilisation_ppm": report.utilisation_ppm,
                "incarnation": report.incarnation,
                "seq": report.seq,
                "steps": report.steps,
                "volumes": volumes,
            });
            (name.to_string(), shown)
        })
        .collect();
    Json(json!({ "nodes": nodes }))
}

async fn status(State(shell): State<Shell>) -> Result<Json<Value>, No> {
    let status = shell.driver.look(|core| {
        let counters = core.counters();
        json!({
            "start": core.start(),
            "now_ms": core.now_ms(),
            "tenants": core.tenants().count(),
            "nodes": core.nodes().count(),
            "volumes": core.volumes().count(),
            "operations_open": core.operations().filter(|one| !one.phase.is_over()).count(),
            "leases": core.leases().count(),
            "decisions": counters.decisions,
            "decided_natively_instead": counters.native_instead,
            "answers_late": counters.late_answers,
            "reports": counters.reports,
            "reports_dropped": counters.reports_dropped,
        })
    });
    Ok(Json(status.await.map_err(busy)?))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Begin {
    /// Revision of the store to begin with; default: what changes from now on.
    from: Option<u64>,
    /// Only objects under this, like `volume/`.
    prefix: String,
}

/// Changes as server-sent events, each with the store's revision as its id; `Last-Event-ID` goes on where it was.
async fn watch(
    State(shell): State<Shell>,
    headers: HeaderMap,
    Query(begin): Query<Begin>,
) -> Result<Response, No> {
    let Ok(permit) = Arc::clone(&shell.watches).try_acquire_owned() else {
        let what = format!("there are {WATCHES_MAX} watches; end one");
        return Err(refusal(StatusCode::TOO_MANY_REQUESTS, what));
    };
    let failed =
        |error: &dyn std::fmt::Display| refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let revision = match last.map(|last| last + 1).or(begin.from) {
        Some(revision) => revision,
        None => shell.store.revision().map_err(|error| failed(&error))? + 1,
    };
    let range = KeyRange::prefix(&format!("{CORE}{}", begin.prefix));
    let mut watch = shell.store.watch(range, revision).map_err(|error| match error {
        WatchError::Compacted { .. } => refusal(StatusCode::GONE, error.to_string()),
        WatchError::Store(error) => failed(&error),
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
    let changes: Vec<Value> = batch
        .changes
        .iter()
        .map(|change| {
            let object = change.entry.as_ref().map(|entry| {
                let record: Value = serde_json::from_slice(&entry.value).unwrap_or(Value::Null);
                // A record is an object with the one key that says its sort.
                record.as_object().and_then(|record| record.values().next().cloned()).unwrap_or(record)
            });
            let key = change.key.strip_prefix(CORE).unwrap_or(&change.key);
            json!({ "key": key, "object": object })
        })
        .collect();
    json!({ "revision": batch.revision, "changes": changes }).to_string()
}
