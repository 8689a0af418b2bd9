//! The doors of a running data plane: HTTP on a Unix socket for `stats` and `reload`, and on loopback for
//! Prometheus. Everything here runs on ordinary threads, never on a worker.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::daemon::{Daemon, StartError};
use crate::{metrics, report};

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
    /// The metrics address is not one.
    #[error("node.metrics = \"{0}\" is neither an address such as \"127.0.0.1:9464\" nor \"off\"")]
    MetricsText(String),
    /// The metrics address can be reached by others.
    #[error("node.metrics = \"{0}\" is not on loopback; metrics_public = true allows it")]
    MetricsPublic(SocketAddr),
    /// The metrics address is taken.
    #[error("cannot serve metrics on {address}: {source}; choose another address with node.metrics, or \"off\"")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The runtime could not be made.
    #[error("cannot start the agent: {0}")]
    Runtime(std::io::Error),
}

/// Runs a data plane until SIGINT or SIGTERM. `ready` is told the one line that says so.
pub fn run(config: &Path, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(serve(config, ready))
}

async fn serve(config: &Path, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    let file = crate::config::read(config).map_err(StartError::from)?;
    let socket = socket_path(&file.node);
    let metrics_address = metrics_address(&file.node)?;
    let unix = bind_socket(&socket)?;
    let _socket = Unlink(socket.clone());
    let metrics = match metrics_address {
        None => None,
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .map_err(|source| RunError::Metrics { address, source })?,
        ),
    };
    let daemon = Arc::new(Daemon::start(config)?);
    let router = router(Arc::clone(&daemon));
    let mut signals = signals()?;
    let follower = follow_ports(&daemon);
    ready(&line(&daemon, &socket, metrics_address));
    let unix_server = axum::serve(unix, router.clone()).into_future();
    let metrics_server = async {
        match metrics {
            Some(listener) => axum::serve(listener, router).into_future().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(unix_server, metrics_server);
    loop {
        tokio::select! {
            ended = &mut unix_server => warn!("control socket: {ended:?}"),
            ended = &mut metrics_server => warn!("metrics: {ended:?}"),
            // What is wrong with the file was logged; what runs goes on.
            _ = signals.hangup.recv() => drop(reload(&daemon).await),
            _ = signals.interrupt.recv() => break,
            _ = signals.terminate.recv() => break,
        }
    }
    info!("stopping");
    stop(daemon, follower).await;
    Ok(())
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

async fn stop(daemon: Arc<Daemon>, follower: std::thread::JoinHandle<()>) {
    let ending = tokio::task::spawn_blocking(move || {
        // Requests under way still hold the daemon for an instant.
        let mut daemon = daemon;
        loop {
            match Arc::try_unwrap(daemon) {
                Ok(alone) => break alone.stop(),
                Err(shared) => daemon = shared,
            }
            std::thread::yield_now();
        }
        // The node is gone and with it the sender that the follower listens to.
        if follower.join().is_err() {
            warn!("the port follower panicked");
        }
    });
    if ending.await.is_err() {
        warn!("stopping was cut short");
    }
}

fn line(daemon: &Daemon, socket: &Path, metrics: Option<SocketAddr>) -> String {
    daemon.with_config(|file, _| {
        let cpus: Vec<String> = daemon
            .node()
            .plan()
            .workers
            .iter()
            .map(|worker| worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string()))
            .collect();
        format!(
            "{} is running: workers on cpu {}, {} ports, {} tenants, {} volumes, control {}, metrics {}",
            file.node.name,
            cpus.join(","),
            file.port.len(),
            file.tenant.len(),
            file.volume.len(),
            socket.display(),
            metrics.map_or("off".to_owned(), |address| format!("http://{address}/metrics")),
        )
    })
}

/// Where the control socket of a node is.
pub fn socket_path(node: &crate::config::file::Node) -> PathBuf {
    node.control_socket
        .clone()
        .unwrap_or_else(|| Path::new(SOCKETS).join(format!("{}.sock", node.name)))
}

/// Folder of control sockets.
pub const SOCKETS: &str = "/run/tidegate";

fn metrics_address(node: &crate::config::file::Node) -> Result<Option<SocketAddr>, RunError> {
    if node.metrics == "off" {
        return Ok(None);
    }
    let address: SocketAddr =
        node.metrics.parse().map_err(|_| RunError::MetricsText(node.metrics.clone()))?;
    if address.ip().is_loopback() || node.metrics_public {
        Ok(Some(address))
    } else {
        Err(RunError::MetricsPublic(address))
    }
}

/// Binds the socket for its owner alone. One that a dead daemon left is replaced, a live one is not.
fn bind_socket(path: &Path) -> Result<tokio::net::UnixListener, RunError> {
    let failed = |source| RunError::Socket { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(RunError::AlreadyRunning(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = tokio::net::UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Removes the socket when the daemon ends, however it ends short of kill -9.
struct Unlink(PathBuf);

impl Drop for Unlink {
    fn drop(&mut self) {
        if let Err(failure) = std::fs::remove_file(&self.0) {
            warn!("{} stays behind: {failure}", self.0.display());
        }
    }
}

/// The routes: /stats, /metrics, /healthz, /reload.
fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/stats", get(stats))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(async || "ok\n"))
        .route("/reload", post(post_reload))
        .with_state(daemon)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Which {
    volumes: String,
    limit: Option<usize>,
}

async fn stats(State(daemon): State<Arc<Daemon>>, Query(which): Query<Which>) -> Response {
    let made = tokio::task::spawn_blocking(move || {
        report::report(&daemon, &which.volumes, which.limit.unwrap_or(VOLUMES_DEFAULT))
    });
    match made.await {
        Ok(report) => Json(report).into_response(),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
    }
}

async fn prometheus(State(daemon): State<Arc<Daemon>>) -> Response {
    let made = tokio::task::spawn_blocking(move || {
        metrics::text(&report::report(&daemon, "", VOLUMES_DEFAULT))
    });
    match made.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(failure)) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
        Err(failure) => (StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()).into_response(),
    }
}

async fn post_reload(State(daemon): State<Arc<Daemon>>) -> Response {
    match reload(&daemon).await {
        Ok(version) => format!("version {version} runs\n").into_response(),
        Err(refused) => (StatusCode::UNPROCESSABLE_ENTITY, format!("{refused}\n")).into_response(),
    }
}

async fn reload(daemon: &Arc<Daemon>) -> Result<u64, String> {
    let daemon = Arc::clone(daemon);
    let outcome = tokio::task::spawn_blocking(move || daemon.reload().map_err(|refused| refused.to_string()));
    let outcome = outcome.await.unwrap_or_else(|failure| Err(failure.to_string()));
    if let Err(refused) = &outcome {
        error!("the configuration was not reloaded, nothing has changed: {refused}");
    }
    outcome
}
