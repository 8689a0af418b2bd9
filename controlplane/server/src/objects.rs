//! Objects by sort: `GET /v1/volumes`, `GET /v1/volumes/7`, `GET /v1/volumes/disk`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use contract::{
    Event, EventId, Lease, LeaseId, Limit, Node, NodeId, Operation, OperationId, Refused, Tenant, TenantId,
    Volume, VolumeId,
};
use control_core::Core;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{No, Shell, busy, refusal};
use crate::openapi::Route;
use crate::said::{Asked, Named};

/// Objects of one answer at most, and by default.
const LIST_MAX: usize = 10_000;
const LIST_DEFAULT: usize = 1_000;

/// A sort of objects.
pub trait Sort: Clone + Serialize + JsonSchema + Send + 'static {
    /// What its ids begin with.
    const SORT: &'static str;
    /// All there are, by id.
    fn all(core: &Core) -> impl Iterator<Item = &Self>;
    /// The one of that number.
    fn by_id(core: &Core, id: u64) -> Option<&Self>;
    /// Its number.
    fn id(&self) -> u64;
    /// What people call it; by default nothing.
    fn name(&self) -> Option<&str> {
        None
    }
}

macro_rules! sort {
    ($sort:ty, $id:ident, $all:ident, $one:ident $(, $($name:ident).+)?) => {
        impl Sort for $sort {
            const SORT: &'static str = stringify!($one);

            fn all(core: &Core) -> impl Iterator<Item = &Self> {
                core.$all()
            }

            fn by_id(core: &Core, id: u64) -> Option<&Self> {
                core.$one($id(id))
            }

            fn id(&self) -> u64 {
                self.id.0
            }

            $(fn name(&self) -> Option<&str> {
                Some(self.$($name).+.as_str())
            })?
        }
    };
}

sort!(Tenant, TenantId, tenants, tenant, name);
sort!(Node, NodeId, nodes, node, info.name);
sort!(Volume, VolumeId, volumes, volume, name);
sort!(Event, EventId, events, event);
sort!(Operation, OperationId, operations, operation);
sort!(Lease, LeaseId, leases, lease);

/// Routes of all sorts.
pub fn routes() -> Vec<Route> {
    let both = |list: Route, one: Route| [list, one.refuses([StatusCode::NOT_FOUND])];
    let mut all = Vec::new();
    all.extend(both(sorted::<Tenant>("/v1/tenants"), single::<Tenant>("/v1/tenants/{id}")));
    all.extend(both(sorted::<Node>("/v1/nodes"), single::<Node>("/v1/nodes/{id}")));
    all.extend(both(sorted::<Volume>("/v1/volumes"), single::<Volume>("/v1/volumes/{id}")));
    all.extend(both(sorted::<Event>("/v1/events"), single::<Event>("/v1/events/{id}")));
    all.extend(both(sorted::<Operation>("/v1/operations"), single::<Operation>("/v1/operations/{id}")));
    all.extend(both(sorted::<Lease>("/v1/leases"), single::<Lease>("/v1/leases/{id}")));
    let about = "Limits of the ledger that were set; they have no number";
    all.push(Route::get("/v1/limits", limits).about(about).answers::<Items<Limit>>());
    all
}

fn sorted<T: Sort>(path: &'static str) -> Route {
    Route::get(path, list::<T>).about("Some, by id").asks::<Which>().answers::<Items<T>>()
}

fn single<T: Sort>(path: &'static str) -> Route {
    Route::get(path, one::<T>).about("One, by its id or, if it has one, its name").answers::<T>()
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Which {
    /// Only ids above this one
    after: u64,
    /// At most so many, by default 1000; more than 10000 are never given
    #[schemars(with = "u64")]
    limit: Option<usize>,
}

/// Some objects, by id.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "{T}Items")]
struct Items<T> {
    items: Vec<T>,
    /// There are more: go on with `after` = the last id.
    more: bool,
}

async fn list<T: Sort>(State(shell): State<Shell>, Asked(which): Asked<Which>) -> Result<Json<Items<T>>, No> {
    let limit = which.limit.unwrap_or(LIST_DEFAULT).min(LIST_MAX);
    let found = shell.driver.look(move |core| {
        let wanted = T::all(core).filter(|one| one.id() > which.after);
        // One more tells that there are more.
        wanted.take(limit + 1).cloned().collect::<Vec<T>>()
    });
    let mut items = found.await.map_err(busy)?;
    let more = items.len() > limit;
    items.truncate(limit);
    Ok(Json(Items { items, more }))
}

async fn limits(State(shell): State<Shell>) -> Result<Json<Items<Limit>>, No> {
    let items = shell.driver.look(|core| core.limits().copied().collect()).await.map_err(busy)?;
    Ok(Json(Items { items, more: false }))
}

/// The one of that number or, if it has one, that name.
pub fn find<'a, T: Sort>(core: &'a Core, id: &str) -> Option<&'a T> {
    let numbered = id.parse().ok().and_then(|number| T::by_id(core, number));
    numbered.or_else(|| T::all(core).find(|one| one.name() == Some(id)))
}

/// There is none, and where those are shown that are there.
pub fn missing(named: &str) -> No {
    refusal(StatusCode::NOT_FOUND, Refused::NotFound(named.to_owned()).to_string())
}

async fn one<T: Sort>(State(shell): State<Shell>, Named(id): Named) -> Result<Json<T>, No> {
    let wanted = id.clone();
    let found = shell.driver.look(move |core| find::<T>(core, &wanted).cloned()).await.map_err(busy)?;
    found.map(Json).ok_or_else(|| missing(&format!("{}/{id}", T::SORT)))
}
