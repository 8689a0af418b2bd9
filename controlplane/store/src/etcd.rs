//! A store in a cluster of etcd, version 3.4 or later: the trait's words are etcd's own, so each call is one request.
//!
//! The trait blocks and the client of etcd is asynchronous. One thread of the store's own runs a small runtime; a call
//! is handed to it and waited for ([`Etcd::call`]). So it can be made from any thread, and nothing of the runtime
//! reaches a caller.
//!
//! Invariants:
//! - a call ends within [`CALL_MAX`], whatever the cluster does; it is tried once, since a transaction that nobody
//!   answered may have been done;
//! - all keys begin with the prefix, and nothing else of the cluster is read or written; revisions are those of the
//!   whole cluster;
//! - history is as long as with other stores, by compacting: etcd keeps all of it unless somebody does, and then it
//!   is full ([`history`], decision 064). Compacting is of the whole cluster.

mod history;
mod watch;
mod words;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, Error, GetOptions, GetResponse, TlsOptions, Txn, TxnOp,
    TxnOpResponse,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use self::history::History;
use self::words::{Trouble, entry, keys, number, revision_of, signed};
use crate::{
    Compare, Entry, KEY_BYTES_MAX, KeyRange, LeaseId, Operation, Outcome, Page, Revision, Store, StoreError,
    Transaction, VALUE_BYTES_MAX, Watch, WatchError,
};

/// How long a call may take. An election of etcd takes a second or two, which a call outlasts.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A silent member is asked whether it is there after this long; etcd refuses who asks more often than every 5 s.
const PING: Duration = Duration::from_secs(10);
/// Entries of one request: an answer is bounded only by their number.
const PAGE: usize = 128;
/// Longest answer: a page of the longest entries.
const ANSWER_BYTES_MAX: usize = PAGE * (VALUE_BYTES_MAX + 2 * KEY_BYTES_MAX) + (1 << 20);

/// What is said when the runtime is gone; only the end of the process takes it before its store.
const ENDED: &str = "the thread that talks to it has ended";

/// Where a cluster is, and who we are there.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Addresses of its members, like `http://127.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// What all keys begin with; not empty.
    pub prefix: String,
    /// For `https`.
    pub tls: Option<Tls>,
}

/// How members are known, and we to them.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificates of the authorities that members are signed by, PEM.
    pub authority: Vec<u8>,
    /// Ours, where members ask for one.
    pub identity: Option<Identity>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The chain, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
}

/// See the module's documentation; clones are the same store.
#[derive(Clone)]
pub struct Etcd(Arc<Inner>);

struct Inner {
    runtime: Handle,
    client: Client,
    /// As people know it.
    place: String,
    prefix: String,
    history: Mutex<History>,
    /// The runtime's thread ends with this.
    _alive: oneshot::Sender<()>,
}

impl Etcd {
    /// A store in a cluster that answers.
    pub fn connect(cluster: &Cluster) -> Result<Etcd, StoreError> {
        let failed = |error: std::io::Error| StoreError::Failed(Box::new(error));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name("tidegate-etcd".to_owned())
            // Nothing is ever sent: the other end goes with the store.
            .spawn(move || runtime.block_on(async { drop(ended.await) }))
            .map_err(failed)?;
        let place = cluster.endpoints.join(", ");
        let (endpoints, options) = (cluster.endpoints.clone(), options(cluster));
        let client = wait(&handle, async move { Client::connect(endpoints, Some(options)).await })
            .map_err(|trouble| trouble.told(&place))?;
        let (prefix, history) = (cluster.prefix.clone(), Mutex::default());
        let store = Etcd(Arc::new(Inner { runtime: handle, client, place, prefix, history, _alive: alive }));
        let revision = store.revision()?;
        store.history().begin(revision);
        Ok(store)
    }

    /// Has the runtime do something, and waits.
    fn call<T: Send + 'static>(
        &self,
        what: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.attempt(what).map_err(|trouble| trouble.told(&self.0.place))
    }

    fn attempt<T: Send + 'static>(
        &self,
        what: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Trouble> {
        wait(&self.0.runtime, what)
    }

    /// Reads at most a page of what lies between two keys of etcd; of one revision, if it is not 0.
    fn read(&self, from: Vec<u8>, options: GetOptions) -> Result<GetResponse, Trouble> {
        let mut kv = self.0.client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        self.attempt(async move { kv.get(from, Some(options)).await })
    }

    fn told(&self, trouble: Trouble) -> StoreError {
        trouble.told(&self.0.place)
    }

    /// A key as etcd has it.
    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.0.prefix).into_bytes()
    }

    /// The ends of a range as etcd has them; the last one is not in it.
    fn ends(&self, range: &KeyRange) -> (Vec<u8>, Vec<u8>) {
        let end = match &range.end {
            Some(end) => self.key(end),
            // INVARIANT: no text is after the last letter of all, so the prefix of all keys always has a next one;
            // a byte that no text has is after all others.
            None => KeyRange::prefix(&self.0.prefix).end.map_or(vec![0xff], String::into_bytes),
        };
        (self.key(&range.start), end)
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        // It is whole between its calls.
        self.0.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has etcd forget what is too old, if there is enough of it. An error is that of a request that was not made:
    /// the transaction before which this stands is not tried.
    fn compact(&self) -> Result<(), StoreError> {
        let Some(until) = self.history().due() else { return Ok(()) };
        let mut kv = self.0.client.kv_client();
        match self.attempt(async move { kv.compact(signed(until), None).await }) {
            // Somebody else has done it.
            Ok(_) | Err(Trouble::Compacted) => {}
            Err(trouble) => return Err(self.told(trouble)),
        }
        self.history().forgotten(until);
        Ok(())
    }

    fn transaction(&self, transaction: &Transaction) -> Txn {
        let holds = |compare: &Compare| {
            let modified = signed(compare.modified);
            etcd_client::Compare::mod_revision(self.key(&compare.key), CompareOp::Equal, modified)
        };
        let act = |operation: &Operation| match operation {
            Operation::Put { key, value, lease } => {
                let lease = lease.map(words::bound);
                TxnOp::put(self.key(key), value.as_slice(), lease)
            }
            Operation::Delete { key } => TxnOp::delete(self.key(key), None),
        };
        let look = |compare: &Compare| TxnOp::get(self.key(&compare.key), None);
        let (compares, operations) = (&transaction.compares, &transaction.operations);
        Txn::new()
            .when(compares.iter().map(holds).collect::<Vec<_>>())
            .and_then(operations.iter().map(act).collect::<Vec<_>>())
            .or_else(compares.iter().map(look).collect::<Vec<_>>())
    }
}

/// How to reach a cluster.
fn options(cluster: &Cluster) -> ConnectOptions {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT_MAX)
        .with_keep_alive(PING, CALL_MAX)
        .with_keep_alive_while_idle(true)
        // A member without a leader says so instead of waiting for one.
        .with_require_leader(true);
    let Some(tls) = &cluster.tls else { return options };
    let known = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.authority));
    options.with_tls(match &tls.identity {
        Some(own) => known.identity(etcd_client::Identity::from_pem(&own.certificate, &own.key)),
        None => known,
    })
}

/// Has a runtime do something within [`CALL_MAX`], and waits.
fn wait<T: Send + 'static>(
    runtime: &Handle,
    what: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Trouble> {
    match outcome(runtime, async { tokio::time::timeout(CALL_MAX, what).await }) {
        None => Err(Trouble::Away(ENDED.to_owned())),
        Some(Err(_late)) => Err(Trouble::Late),
        Some(Ok(done)) => done.map_err(Trouble::from),
    }
}

/// Has a runtime do something, and waits; nothing if the runtime is no more.
fn outcome<T: Send + 'static>(runtime: &Handle, what: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (to, answer) = mpsc::sync_channel(1);
    runtime.spawn(async move {
        // Whoever asked waits for it below.
        let _ = to.send(what.await);
    });
    answer.recv().ok()
}

impl Store for Etcd {
    fn revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_limit(1).with_keys_only();
        let page = self.read(self.key(""), options).map_err(|trouble| self.told(trouble))?;
        Ok(revision_of(page.header()))
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let page = self.read(self.key(key), GetOptions::new()).map_err(|trouble| self.told(trouble))?;
        Ok(page.kvs().first().map(entry))
    }

    fn range(&self, range: &KeyRange, limit: usize) -> Result<Page, StoreError> {
        let (mut from, end) = self.ends(range);
        if end <= from {
            return Ok(Page { entries: Vec::new(), more: false, revision: self.revision()? });
        }
        let mut page = Page { entries: Vec::new(), more: true, revision: 0 };
        loop {
            // A limit of nothing asks whether there is anything.
            let wanted = limit.saturating_sub(page.entries.len()).clamp(1, PAGE);
            let options = GetOptions::new()
                .with_range(end.clone())
                .with_limit(wanted as i64)
                .with_revision(signed(page.revision));
            let mut answer = self.read(from, options).map_err(|trouble| self.told(trouble))?;
            if page.revision == 0 {
                page.revision = revision_of(answer.header());
            }
            page.more = answer.more();
            for found in answer.take_kvs() {
                let key = keys(found.key(), &self.0.prefix)?;
                page.entries.push((key, entry(&found)));
            }
            if page.entries.len() > limit {
                page.entries.truncate(limit);
                page.more = true;
            }
            let Some((last, _)) = page.entries.last().filter(|_| page.more && page.entries.len() < limit)
            else {
                return Ok(page);
            };
            from = self.key(last);
            from.push(0);
        }
    }

    fn transact(&self, transaction: &Transaction) -> Result<Outcome, StoreError> {
        transaction.check()?;
        self.compact()?;
        let wanted = self.transaction(transaction);
        let mut kv = self.0.client.kv_client().max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = self.call(async move { kv.txn(wanted).await })?;
        if answer.succeeded() {
            let revision = revision_of(answer.header());
            self.history().add(revision, transaction.bytes());
            return Ok(Outcome::Done { revision });
        }
        let found = |response: TxnOpResponse| match response {
            TxnOpResponse::Get(page) => page.kvs().first().map(entry),
            _ => None,
        };
        Ok(Outcome::Conflict { found: answer.op_responses().into_iter().map(found).collect() })
    }

    fn watch(&self, range: KeyRange, from: Revision) -> Result<Box<dyn Watch>, WatchError> {
        Ok(Box::new(watch::Following::begin(self, &range, from)?))
    }

    fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // etcd counts whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let mut leases = self.0.client.lease_client();
        let granted = self.call(async move { leases.grant(signed(seconds), None).await })?;
        Ok(LeaseId(number(granted.id())))
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut leases = self.0.client.lease_client();
        self.call(async move { leases.keep_alive(signed(lease.0)).await.map(drop) })
    }

    fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut leases = self.0.client.lease_client();
        self.call(async move { leases.revoke(signed(lease.0)).await.map(drop) })
    }

    fn pass(&self, _: Duration) -> Result<(), StoreError> {
        // etcd has clocks of its own.
        Ok(())
    }
}
