//! Opening the volumes that a file exports, and what clients are told about them.

use std::path::{Path, PathBuf};

use engine::block::BlockSize;
use engine::frame::Backing;
use engine::session::nbd::{Export, ExportError};
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
    /// The protocol cannot name it.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Opens a volume and gives it to its worker. Returns what clients are told about it.
pub(crate) fn offer(node: &Node, served: &Served, hugepages: bool) -> Result<Export, ServeError> {
    let (target, size, blocks) = open(served, hugepages)?;
    node.serve(served.worker, target, &served.limits)?;
    let mut export = Export::new(&served.name, &served.description, served.volume, size, blocks)?;
    export.read_only = served.read_only;
    export.fast_zero = true;
    Ok(export)
}

fn open(served: &Served, hugepages: bool) -> Result<(Target, BlockSize, u64), ServeError> {
    match &served.place {
        Place::Null { size, blocks } => Ok((Target::null(served.volume, *size, *blocks), *size, *blocks)),
        Place::Memory { size, blocks } => {
            let (target, backing) = Target::memory(served.volume, *size, *blocks, hugepages)?;
            if let (Backing::Normal { why }, true) = (backing, hugepages) {
                warn!(export = served.name, "its memory lies in ordinary pages: {why}");
            }
            Ok((target, *size, *blocks))
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
            let (size, blocks) = (volume.block_size(), volume.blocks());
            Ok((Target::thin(volume, directory.clone()), size, blocks))
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
