//! Opening the volumes that a file exports, and what clients are told about them.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use engine::block::BlockSize;
use engine::frame::Backing;
use engine::session::nbd::{Export, ExportError};
use engine::session::nvme_tcp::{
    Listed, Namespace, NamespaceError, Subsystem, SubsystemError, SubsystemLimits,
};
use engine::throttle::Limits;
use engine::volume::{self, HostDirectory, OpenError, store};
use engine::{Node, Target, TargetError};
use tracing::{info, warn};

use crate::config::exports::{Place, Served};

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its directory is not there.
    #[error(
        "{}: there is no volume; make it with `tidegate-dataplane volume create`, or set create = true",
        .0.display()
    )]
    Missing(PathBuf),
    /// It cannot be made.
    #[error("{}: {source}", path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: store::CreateError,
    },
    /// It cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The engine does not take it.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// NBD cannot name it.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// NVMe cannot name it.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// NVMe cannot show it.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// What is gone with the daemon needs an identity of its own.
    #[error("cannot make an identity from /dev/urandom: {0}")]
    Random(io::Error),
}

/// A volume that was opened.
struct Opened {
    target: Target,
    size: BlockSize,
    blocks: u64,
    identity: [u8; 16],
}

/// Opens a volume and gives it to its worker. Returns what clients are told about it.
pub(crate) fn offer(
    node: &Node,
    served: &Served,
    limits: &Limits,
    hugepages: bool,
) -> Result<(Export, Listed), ServeError> {
    let Opened { target, size, blocks, identity } = open(served, hugepages)?;
    let mut export = Export::new(&served.name, &served.description, served.volume, size, blocks)?;
    export.read_only = served.read_only;
    export.fast_zero = true;
    let namespace = Namespace::new(served.volume, size, blocks, identity, served.read_only)?;
    let nqn = served.nqn.clone().unwrap_or_else(|| nqn(&namespace));
    let listed = Listed { nqn, hosts: served.hosts.clone() };
    let serial: String = identity.iter().take(10).map(|byte| format!("{byte:02x}")).collect();
    let hosts = served.hosts.clone();
    let subsystem = Subsystem::new(&listed.nqn, &serial, hosts, vec![namespace], SubsystemLimits::default())?;
    let target = target.with_subsystem(subsystem).with_sampling(served.sample);
    node.serve(served.worker, target, limits)?;
    Ok((export, listed))
}

/// Base clause 4.5.1: a name made of a UUID.
fn nqn(namespace: &Namespace) -> String {
    let hex: String = namespace.uuid().iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("nqn.2014-08.org.nvmexpress:uuid:{a}-{b}-{c}-{d}-{e}")
}

/// For what is gone with the daemon: a host must not take what comes after it for the same.
fn random() -> Result<[u8; 16], ServeError> {
    let mut identity = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut identity));
    read.map(|()| identity).map_err(ServeError::Random)
}

fn open(served: &Served, hugepages: bool) -> Result<Opened, ServeError> {
    match &served.place {
        Place::Null { size, blocks } => {
            let (target, identity) = (Target::null(served.volume, *size, *blocks), random()?);
            Ok(Opened { target, size: *size, blocks: *blocks, identity })
        }
        Place::Memory { size, blocks } => {
            let (target, backing) = Target::memory(served.volume, *size, *blocks, hugepages)?;
            if let (Backing::Normal { why }, true) = (backing, hugepages) {
                warn!(export = served.name, "its memory lies in ordinary pages: {why}");
            }
            Ok(Opened { target, size: *size, blocks: *blocks, identity: random()? })
        }
        Place::Files { directory, create, leaves } => {
            let failed = |source| ServeError::Open { path: directory.clone(), source };
            let place = find(directory, *create)?;
            let config = volume::Config { leaf_cache_leaves: *leaves, ..volume::Config::default() };
            let (volume, recovery) = volume::open(&place, served.volume, config).map_err(failed)?;
            info!(
                export = served.name,
                directory = %directory.display(),
                epoch = recovery.epoch.0,
                batches_cut = recovery.batches_cut,
                "volume opened"
            );
            let (size, blocks, identity) = (volume.block_size(), volume.blocks(), volume.identity());
            Ok(Opened { target: Target::thin(volume, directory.clone()), size, blocks, identity })
        }
    }
}

fn find(directory: &Path, create: Option<(BlockSize, u64)>) -> Result<HostDirectory, ServeError> {
    match (HostDirectory::open(directory), create) {
        (Ok(place), _) => Ok(place),
        (Err(_), None) => Err(ServeError::Missing(directory.to_owned())),
        (Err(_), Some((size, blocks))) => {
            info!(directory = %directory.display(), "making a new volume");
            store::create(directory, blocks << size.shift(), size)
                .map_err(|source| ServeError::Create { path: directory.to_owned(), source })
        }
    }
}
