//! Opening one volume, and what clients are told about it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use engine::block::{BlockSize, VolumeId};
use engine::frame::Backing;
use engine::session::nbd::{self, ExportError};
use engine::session::nvme_tcp::{
    Access, Hosts, Namespace, NamespaceError, Subsystem, SubsystemError, SubsystemLimits,
};
use engine::volume::{self, HostDirectory, OpenError, format::Identity, store};
use engine::{Target, TargetError};
use tracing::{info, warn};

use crate::config::exports::{Place, Wanted};

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
    /// Another one lies there.
    #[error(
        "{}: the volume there has identity {}, and the configuration says {}; correct directory or identity",
        path.display(), hex(found), hex(wanted)
    )]
    Another {
        /// Its directory.
        path: PathBuf,
        /// What lies there.
        found: Identity,
        /// What should.
        wanted: Identity,
    },
    /// Hosts that know it would not find it again.
    #[error(
        "{}: the volume there has blocks of {found} bytes, and hosts of the standby were told {told}; correct block",
        path.display()
    )]
    Blocks {
        /// Its directory.
        path: PathBuf,
        /// Size of a block.
        found: u32,
        /// What hosts were told.
        told: u32,
    },
    /// It would lose what lies behind its new end.
    #[error(
        "size {wanted} is less than it has ({now} bytes), and what lies behind that would be lost; set size to that \
         again, or stop serving it and use `tidegate-dataplane volume resize --shrink`"
    )]
    Smaller {
        /// Bytes that it has.
        now: u64,
        /// Bytes that it should have.
        wanted: u64,
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

/// A volume that is ready to be given to a worker.
pub(super) struct Opened {
    pub target: Target,
    pub size: BlockSize,
    pub blocks: u64,
    pub identity: Identity,
}

/// Opens a volume, or takes a standby as it is said to be. `leaves` of its map may be kept in memory.
pub(super) fn open(
    wanted: &Wanted,
    volume: VolumeId,
    leaves: usize,
    hugepages: bool,
) -> Result<Opened, ServeError> {
    match &wanted.place {
        &Place::Null { size, blocks } => {
            Ok(Opened { target: Target::null(volume, size, blocks), size, blocks, identity: random()? })
        }
        &Place::Memory { size, blocks } => {
            let (target, backing) = Target::memory(volume, size, blocks, hugepages)?;
            if let (Backing::Normal { why }, true) = (backing, hugepages) {
                warn!(export = wanted.name, "its memory lies in ordinary pages: {why}");
            }
            Ok(Opened { target, size, blocks, identity: random()? })
        }
        &Place::Standby { size, blocks, identity, .. } => {
            Ok(Opened { target: Target::standby(volume, size), size, blocks, identity })
        }
        Place::Files { directory, create, bytes, block, identity, grant } => {
            let make = bytes.filter(|_| *create).map(|bytes| (*block, bytes));
            let place = find(directory, make, *identity)?;
            check_identity(directory, &place, *identity)?;
            let config =
                volume::Config { leaf_cache_leaves: leaves, grant: *grant, ..volume::Config::default() };
            let failed = |source| ServeError::Open { path: directory.clone(), source };
            let (opened, recovery) = volume::open(&place, volume, config).map_err(failed)?;
            info!(
                export = wanted.name,
                directory = %directory.display(),
                epoch = recovery.epoch.0,
                batches_cut = recovery.batches_cut,
                "volume opened"
            );
            let (size, blocks, identity) = (opened.block_size(), opened.blocks(), opened.identity());
            check_size(blocks << size.shift(), *bytes)?;
            Ok(Opened { target: Target::thin(opened, directory.clone()), size, blocks, identity })
        }
    }
}

/// Before it is taken over: another volume's owner is not to be fenced by mistake.
fn check_identity(path: &Path, place: &HostDirectory, wanted: Option<Identity>) -> Result<(), ServeError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let summary = store::summary(place);
    let found = summary.map_err(|source| ServeError::Open { path: path.to_owned(), source })?.identity;
    if found == wanted { Ok(()) } else { Err(ServeError::Another { path: path.to_owned(), found, wanted }) }
}

/// A volume never becomes smaller while it is served.
pub(super) fn check_size(now: u64, wanted: Option<u64>) -> Result<(), ServeError> {
    match wanted {
        Some(wanted) if wanted < now => Err(ServeError::Smaller { now, wanted }),
        _ => Ok(()),
    }
}

/// What NBD clients are told of it.
pub(super) fn offer(
    wanted: &Wanted,
    volume: VolumeId,
    size: BlockSize,
    blocks: u64,
    identity: Option<Identity>,
) -> Result<nbd::Export, ServeError> {
    let mut export = nbd::Export::new(&wanted.name, &wanted.description, volume, size, blocks)?;
    export.identity = identity;
    (export.read_only, export.fast_zero) = (wanted.read_only, true);
    Ok(export)
}

/// What NVMe hosts find of it.
pub(super) fn namespace(wanted: &Wanted, volume: VolumeId, opened: &Opened) -> Result<Namespace, ServeError> {
    let Opened { size, blocks, identity, .. } = opened;
    let namespace = Namespace::new(volume, *size, *blocks, *identity, wanted.read_only)?;
    let access = if wanted.is_standby() { Access::Inaccessible } else { Access::Optimized };
    Ok(namespace.with_number(wanted.namespace)?.with_access(access))
}

/// A subsystem with a volume as its one namespace, named by the volume.
pub(super) fn own_subsystem(
    wanted: &Wanted,
    namespace: Namespace,
    identity: &Identity,
    limits: SubsystemLimits,
) -> Result<Subsystem, ServeError> {
    let (nqn, serial) = (nqn(&namespace), hex(&identity[..10]));
    Ok(Subsystem::new(&nqn, &serial, wanted.hosts.clone(), vec![namespace], limits)?)
}

/// A subsystem with a name of its own, still without namespaces. Its serial is made of the name: it is the same wherever
/// and with whatever volumes it is served.
pub(super) fn named_subsystem(
    nqn: &str,
    hosts: &Hosts,
    limits: SubsystemLimits,
) -> Result<Subsystem, ServeError> {
    // FNV-1a.
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum = nqn.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    Ok(Subsystem::new(nqn, &format!("{sum:016x}"), hosts.clone(), Vec::new(), limits)?)
}

/// Base clause 4.5.1: a name made of a UUID.
fn nqn(namespace: &Namespace) -> String {
    let hex = hex(&namespace.uuid());
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("nqn.2014-08.org.nvmexpress:uuid:{a}-{b}-{c}-{d}-{e}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// For what is gone with the daemon: a host must not take what comes after it for the same.
fn random() -> Result<Identity, ServeError> {
    let mut identity = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut identity));
    read.map(|()| identity).map_err(ServeError::Random)
}

fn find(
    directory: &Path,
    create: Option<(BlockSize, u64)>,
    identity: Option<Identity>,
) -> Result<HostDirectory, ServeError> {
    match (HostDirectory::open(directory), create) {
        (Ok(place), _) => Ok(place),
        (Err(_), None) => Err(ServeError::Missing(directory.to_owned())),
        (Err(_), Some((size, bytes))) => {
            info!(directory = %directory.display(), "making a new volume");
            store::create_as(directory, bytes, size, identity)
                .map_err(|source| ServeError::Create { path: directory.to_owned(), source })
        }
    }
}
