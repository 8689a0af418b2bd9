//! The daemon's life: everything is opened, then the core is recovered, then the doors open; and the way back.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use store::{Local, OpenError, Store, StoreError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::access::{self, TokenError, Tokens};
use crate::api::{self, Shell};
use crate::audit::Audit;
use crate::config::{self, Config, ConfigError};
use crate::doors::{DoorError, Doors, Peer};
use crate::driver::{self, Driver, Ended, StartError, Work};
use crate::nodes::Live;
use crate::policies::{Policies, PoliciesError};
use crate::writes::Writes;

/// Why a control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its folder.
    #[error("{}: {source}; make it, or choose another directory", path.display())]
    Folder {
        /// The folder, or a file in it.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store's file.
    #[error(transparent)]
    File(#[from] OpenError),
    /// The store elsewhere.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else has the folder.
    #[error("another control plane is using {}; it has one at a time", .0.display())]
    Used(PathBuf),
    /// The core.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The policies.
    #[error(transparent)]
    Policies(#[from] PoliciesError),
    /// Where clients come in.
    #[error(transparent)]
    Doors(#[from] DoorError),
    /// The core ended.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// The runtime could not be made.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// Runs until SIGINT or SIGTERM. `ready` is told the one line that says so.
pub fn run(path: &Path, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    let config = config::read(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError::Runtime)?;
    runtime.block_on(serve(&config, ready))
}

async fn serve(config: &Config, ready: impl FnOnce(&str)) -> Result<(), RunError> {
    // From here on a signal ends the daemon in order.
    let on = |kind| signal(kind).map_err(RunError::Runtime);
    let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
    let folder = &config.file.directory;
    let failed = |path: &Path, source| RunError::Folder { path: path.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let tokens = Tokens::read(&config.file.listen)?;
    let _alone = lock(folder)?;
    let store = open_store(config)?;
    // Before anything of it is read.
    let writes = Writes::begin(Arc::clone(&store), seed())?;
    let audit_path = folder.join("audit.log");
    let audit = Arc::new(Audit::open(&audit_path).map_err(|source| failed(&audit_path, source))?);
    let (driver, seat) = Driver::new();
    let policies = Policies::open(folder, Arc::clone(&store), &driver, config.trust.clone())?;
    let core = driver::recover(&*store, core_config(config))?;
    info!(start = core.start(), volumes = core.volumes().count(), nodes = core.nodes().count(), "recovered");
    let (tell, mut ended) = oneshot::channel();
    let work = Work { core, writes, store: Arc::clone(&store), policies: policies.clone() };
    seat.start(work, tell)?;
    let doors = Doors::open(&config.file.listen, &config.places).await?;
    let line = format!("the control plane is running at {}", doors.shown().join(" and "));
    let shell = Shell {
        driver: driver.clone(),
        live: Live::default(),
        store,
        audit,
        policies,
        watches: Shell::watches(),
    };
    let router: Router =
        api::router().layer(axum::middleware::from_fn_with_state(tokens, access::guard)).with_state(shell);
    tokio::spawn(axum::serve(doors, router.into_make_service_with_connect_info::<Peer>()).into_future());
    ready(&line);
    let why = tokio::select! {
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
        why = &mut ended => Some(why.ok().flatten()),
    };
    if let Some(why) = why {
        error!("the core has ended");
        return why.map_or(Ok(()), |why| Err(RunError::Ended(why)));
    }
    info!("stopping");
    driver.stop();
    match ended.await.ok().flatten() {
        Some(why) => Err(why.into()),
        None => Ok(()),
    }
}

/// Has a folder to itself for as long as the file is open.
fn lock(folder: &Path) -> Result<File, RunError> {
    let path = folder.join("lock");
    let failed = |source| RunError::Folder { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(RunError::Used(folder.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn open_store(config: &Config) -> Result<Arc<dyn Store>, RunError> {
    let file = config.file.directory.join("store.redb");
    if config.file.store.etcd.is_empty() {
        return Ok(Arc::new(Local::open(&file)?));
    }
    if file.exists() {
        warn!("{} is not used: the configuration has the store in etcd", file.display());
    }
    open_etcd(&config.file.store)
}

#[cfg(feature = "etcd")]
fn open_etcd(kept: &config::Kept) -> Result<Arc<dyn Store>, RunError> {
    let read =
        |path: &PathBuf| std::fs::read(path).map_err(|source| ConfigError::Io { path: path.clone(), source });
    let identity = match (&kept.certificate, &kept.key) {
        (Some(certificate), Some(key)) => {
            Some(store::Identity { certificate: read(certificate)?, key: read(key)? })
        }
        _ => None,
    };
    let authority = kept.authority.as_ref().map(read).transpose()?;
    let cluster = store::Cluster {
        endpoints: kept.etcd.clone(),
        prefix: kept.prefix.clone().unwrap_or_else(|| config::PREFIX.to_owned()),
        tls: authority.map(|authority| store::Tls { authority, identity }),
    };
    Ok(Arc::new(store::Etcd::connect(&cluster)?))
}

#[cfg(not(feature = "etcd"))]
fn open_etcd(_: &config::Kept) -> Result<Arc<dyn Store>, RunError> {
    // INVARIANT: the configuration was checked, and has no address of etcd here.
    unreachable!("a configuration with etcd was taken without it")
}

/// What the file says of the core.
pub fn core_config(config: &Config) -> control_core::Config {
    let default = control_core::Config::default();
    let config::File { liveness, work, leases, migration, .. } = &config.file;
    let longest = migration.period_max_s.map_or(default.period_ms.1, |seconds| seconds * 1_000);
    control_core::Config {
        seed: seed(),
        ask: true,
        suspect_after_ms: liveness.suspect_after_ms.unwrap_or(default.suspect_after_ms),
        lost_after_ms: liveness.lost_after_ms.unwrap_or(default.lost_after_ms),
        return_after_ms: liveness.return_after_ms.unwrap_or(default.return_after_ms),
        patience_ms: work.patience_s.map_or(default.patience_ms, |seconds| seconds * 1_000),
        grace_max_ms: leases.grace_ms.unwrap_or(default.grace_max_ms),
        period_ms: (default.period_ms.0, longest),
        move_deadline_ms: migration.deadline_s.map_or(default.move_deadline_ms, |seconds| seconds * 1_000),
        blackout_max_us: migration.blackout_max_ms.map_or(default.blackout_max_us, |ms| ms * 1_000),
        copy_slots_per_node: work.copy_slots_per_node.unwrap_or(default.copy_slots_per_node),
        copy_bytes_per_s: work.copy_bytes_per_s.unwrap_or(default.copy_bytes_per_s),
        ..default
    }
}

/// A number that no other start has, where its randomness begins: spread by the hasher's own keys, which the system chose.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
