//! The doors of a running data plane: HTTP on a Unix socket for `stats` and `reload`, and on loopback for
//! Prometheus. Everything here runs on ordinary threads, never on a worker.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use engine::WorkerDied;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::control::{BookError, Follower};
use crate::daemon::{Daemon, StartError};
use crate::exports::Applied;
use crate::traces::{self, TraceQuery};
use crate::unix::{self, Unlink};
use crate::{listen, metrics, nbd, nvme, report, tls};

/// Volumes in one report unless asked otherwise.
const VOLUMES_DEFAULT: usize = 1000;

/// Why a data plane cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The control socket is in use.
    #[error("a data plane is already running on {}; stop it, or give this one another node.control_socket", .0.display())]
    AlreadyRunning(PathBuf),
    /// The control socket cannot be made.
    #[error("cannot make the control socket {}: {source}; choose another place with node.control_socket", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The metrics address is taken.
    #[error(
        "cannot serve metrics on {address}: {source}; choose another address with node.metrics, or \"off\""
    )]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// An address for clients is taken.
    #[error(transparent)]
    Listen(#[from] listen::ListenError),
    /// A worker died; the others were stopped.
    #[error("worker {} has died: {}; the others were stopped, start the data plane again", .0.worker, .0.why)]
    WorkerDied(WorkerDied),
    /// There is no memory for discovery.
    #[error(transparent)]
    Memory(#[from] engine::frame::SlabError),
    /// What a control plane said cannot be remembered.
    #[error(transparent)]
    Book(#[from] BookError),
    /// The runtime could not be made.
    #[error("cannot start the agent: {0}")]
    Runtime(std::io::Error),
}

/// Runs a data plane until SIGINT or SIGTERM, or until a worker dies. `ready` is told the one line that says so.
pub fn run(config: &Path, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(serve(config, ready))
}

async fn serve(config: &Path, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    // From here on a signal ends the daemon in order, not in the middle of a start.
    let mut signals = signals()?;
    let file = crate::config::read(config).map_err(StartError::from)?;
    let metrics_address = crate::config::lower::metrics_address(&file)
        .map_err(|source| StartError::Lower { path: config.to_owned(), source })?;
    let socket = socket_path(&file.node);
    let (control, _unlink) = bind_control(&socket)?;
    let metrics = match metrics_address {
        None => None,
        Some(address) => Some(bind_metrics(address).await?),
    };
    let metrics_address = metrics.as_ref().and_then(|listener| listener.local_addr().ok());
    let lowered = |source| StartError::Lower { path: config.to_owned(), source };
    let (mut nbd_listeners, mut nvme_listeners) = (Vec::new(), Vec::new());
    for place in &crate::config::exports::listen(&file).map_err(lowered)? {
        nbd_listeners.push(listen::bind("NBD", place).await?);
    }
    for place in &crate::config::exports::listen_nvme(&file).map_err(lowered)? {
        nvme_listeners.push(listen::bind("NVMe", place).await?);
    }
    let scheme = if file.nbd.tls.as_ref().is_some_and(|tls| tls.required) { "nbds" } else { "nbd" };
    let uris = nbd_listeners.iter().map(|listener| listener.uri(scheme));
    let uris: Vec<String> =
        uris.chain(nvme_listeners.iter().map(|listener| listener.uri("nvme-tcp"))).collect();
    let follows = crate::config::control::settings(&file, &uris).map_err(lowered)?;
    let daemon = Arc::new(Daemon::start(config, file)?);
    let follower = follow_ports(&daemon);
    let mut death = watch_workers(&daemon);
    tokio::spawn(axum::serve(control, control_router(Arc::downgrade(&daemon))).into_future());
    if let Some(listener) = metrics {
        tokio::spawn(axum::serve(listener, readable().with_state(Arc::downgrade(&daemon))).into_future());
    }
    let helper = Arc::new(tls::Helper::start().map_err(RunError::Runtime)?);
    for listener in nbd_listeners {
        let (daemon, helper) = (Arc::downgrade(&daemon), Arc::clone(&helper));
        let greet = move |client| nbd::greet(client, Weak::clone(&daemon), Arc::clone(&helper));
        tokio::spawn(listener.accept("NBD", greet));
    }
    accept_nvme(&daemon, nvme_listeners)?;
    if let Some(settings) = follows {
        tokio::spawn(Follower::new(settings, &daemon)?.follow());
    }
    ready(&line(&daemon, &socket, metrics_address, &uris));
    let died = loop {
        tokio::select! {
            // Apart, so that a long reload delays no answer and no end.
            _ = signals.hangup.recv() => drop(tokio::spawn(reload(Arc::downgrade(&daemon)))),
            _ = signals.interrupt.recv() => break None,
            _ = signals.terminate.recv() => break None,
            Ok(died) = &mut death => break Some(died),
        }
    };
    info!("stopping");
    stop(daemon, follower).await;
    died.map_or(Ok(()), |died| Err(RunError::WorkerDied(died)))
}

/// Lets NVMe hosts in, if they are listened for.
fn accept_nvme(daemon: &Arc<Daemon>, listeners: Vec<listen::Listener>) -> Result<(), RunError> {
    if listeners.is_empty() {
        return Ok(());
    }
    let offers = Arc::new(nvme::Offers::new(daemon.shared_table())?);
    for listener in listeners {
        let (daemon, offers) = (Arc::downgrade(daemon), Arc::clone(&offers));
        let greet = move |client| nvme::greet(client, Weak::clone(&daemon), Arc::clone(&offers));
        tokio::spawn(listener.accept("NVMe", greet));
    }
    Ok(())
}

/// Tells at once, in the log, when a worker dies, and ends with it what waits for that.
fn watch_workers(daemon: &Arc<Daemon>) -> tokio::sync::oneshot::Receiver<WorkerDied> {
    let deaths = daemon.node().deaths().clone();
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Nobody left who could die: the node was stopped.
        let Ok(died) = deaths.recv() else { return };
        error!(worker = died.worker, "a worker has died: {}", died.why);
        // Whoever waited has ended for another reason.
        let _ = tell.send(died);
    });
    told
}

struct Signals {
    hangup: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

fn signals() -> Result<Signals, RunError> {
    let on = |kind| signal(kind).map_err(RunError::Runtime);
    Ok(Signals {
        hangup: on(SignalKind::hangup())?,
        interrupt: on(SignalKind::interrupt())?,
        terminate: on(SignalKind::terminate())?,
    })
}

/// Rebuilds the snapshot whenever a port came up or went, until the daemon is gone.
fn follow_ports(daemon: &Arc<Daemon>) -> std::thread::JoinHandle<()> {
    let changes = daemon.node().port_changes().clone();
    let daemon = Arc::downgrade(daemon);
    std::thread::spawn(move || {
        for () in changes {
            let Some(daemon) = daemon.upgrade() else { return };
            if let Err(refused) = daemon.refresh() {
                error!("after a change of ports: {refused}");
            }
        }
    })
}

/// Stops the daemon as soon as no request uses it any more; open connections alone do not.
async fn stop(daemon: Arc<Daemon>, follower: std::thread::JoinHandle<()>) {
    let mut shared = daemon;
    let alone = loop {
        match Arc::try_unwrap(shared) {
            Ok(alone) => break alone,
            Err(still) => shared = still,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let ending = tokio::task::spawn_blocking(move || {
        alone.stop();
        // The node is gone and with it the sender that the follower listens to.
        if follower.join().is_err() {
            warn!("the port follower panicked");
        }
    });
    if ending.await.is_err() {
        warn!("stopping was cut short");
    }
}

fn line(daemon: &Daemon, socket: &Path, metrics: Option<SocketAddr>, uris: &[String]) -> String {
    let running = daemon.running();
    let workers = &daemon.node().plan().workers;
    let cpus: Vec<String> =
        workers.iter().map(|worker| worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string())).collect();
    let served = match uris {
        [] => String::new(),
        some => format!("{} on {}; ", counted(daemon.table().served.len(), "export"), some.join(" and ")),
    };
    format!(
        "{} is running: {} on cpu {}, {}, {}, {}; {served}control {}, metrics {}",
        running.file.node.name,
        counted(workers.len(), "worker"),
        cpus.join(","),
        counted(running.file.port.len(), "port"),
        counted(running.file.tenant.len(), "tenant"),
        counted(running.file.volume.len(), "volume"),
        socket.display(),
        metrics.map_or("off".to_owned(), |address| format!("http://{address}/metrics")),
    )
}

/// "1 port", "2 ports".
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Where the control socket of a node is.
pub fn socket_path(node: &crate::config::file::Node) -> PathBuf {
    node.control_socket.clone().unwrap_or_else(|| Path::new(SOCKETS).join(format!("{}.sock", node.name)))
}

/// Folder of control sockets.
pub const SOCKETS: &str = "/run/tidegate";

/// Binds the control socket for its owner alone.
fn bind_control(path: &Path) -> Result<(tokio::net::UnixListener, Unlink), RunError> {
    let failed = |source| RunError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let bound = unix::bind(path).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => RunError::AlreadyRunning(path.to_owned()),
        _ => failed(error),
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(bound)
}

async fn bind_metrics(address: SocketAddr) -> Result<tokio::net::TcpListener, RunError> {
    tokio::net::TcpListener::bind(address).await.map_err(|source| RunError::Metrics { address, source })
}

/// What the control socket answers.
fn control_router(daemon: Weak<Daemon>) -> Router {
    Router::new()
        .route("/stats", get(stats))
        .route("/trace", get(trace))
        .route("/reload", post(post_reload))
        .route("/move", post(post_move))
        .merge(readable())
        .with_state(daemon)
}

/// What the metrics address answers: nothing here changes anything.
fn readable() -> Router<Weak<Daemon>> {
    Router::new().route("/metrics", get(prometheus)).route("/healthz", get(async || "ok\n"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Which {
    volumes: String,
    limit: Option<usize>,
}

async fn stats(State(daemon): State<Weak<Daemon>>, Query(which): Query<Which>) -> Response {
    let limit = which.limit.unwrap_or(VOLUMES_DEFAULT);
    with(daemon, move |daemon| report::report(daemon, &which.volumes, limit))
        .await
        .map_or_else(IntoResponse::into_response, |report| Json(report).into_response())
}

async fn trace(State(daemon): State<Weak<Daemon>>, Query(asked): Query<TraceQuery>) -> Response {
    match with(daemon, move |daemon| traces::report(daemon, &asked)).await {
        Ok(Ok(report)) => Json(report).into_response(),
        Ok(Err(unknown)) => (StatusCode::NOT_FOUND, unknown.to_string()).into_response(),
        Err(gone) => gone.into_response(),
    }
}

async fn prometheus(State(daemon): State<Weak<Daemon>>) -> Response {
    let made = with(daemon, |daemon| metrics::text(&report::report(daemon, "", VOLUMES_DEFAULT))).await;
    match made {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(failure)) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
        Err(gone) => gone.into_response(),
    }
}

async fn post_reload(State(daemon): State<Weak<Daemon>>) -> Response {
    match reload(daemon).await {
        Ok((version, applied)) => format!("version {version} runs{applied}\n").into_response(),
        Err(refused) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{refused}\n")).into_response(),
    }
}

#[derive(Debug, Deserialize)]
struct MoveWhat {
    volume: String,
    worker: usize,
}

async fn post_move(State(daemon): State<Weak<Daemon>>, Query(what): Query<MoveWhat>) -> Response {
    let MoveWhat { volume, worker } = what;
    match with(daemon, move |daemon| daemon.move_export(&volume, worker)).await {
        Ok(Ok(moved)) => {
            let engine::Moved { pause_ns, drain_ns, connections } = moved;
            Json(report::Moved { pause_ns, drain_ns, connections }).into_response()
        }
        Ok(Err(refused)) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{refused}\n")).into_response(),
        Err(gone) => gone.into_response(),
    }
}

async fn reload(daemon: Weak<Daemon>) -> Result<(u64, Applied), String> {
    let outcome = match with(daemon, Daemon::reload).await {
        Ok(outcome) => outcome.map_err(|refused| refused.to_string()),
        Err((_, gone)) => Err(gone),
    };
    if let Err(refused) = &outcome {
        error!("the configuration was not reloaded: {refused}");
    }
    outcome
}

/// Does something with the daemon, away from the thread that answers. Holds the daemon no longer than that.
async fn with<T: Send + 'static>(
    daemon: Weak<Daemon>,
    job: impl FnOnce(&Daemon) -> T + Send + 'static,
) -> Result<T, (StatusCode, String)> {
    let Some(daemon) = daemon.upgrade() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "the data plane is stopping".to_owned()));
    };
    let done = tokio::task::spawn_blocking(move || job(&daemon)).await;
    done.map_err(|failure| (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()))
}
