//! `tidegate-dataplane volume`: thin volumes as directories, while nobody serves them.
//!
//! Nothing locks a volume: whoever opens it takes it over (decision D10). So what would hurt a daemon that serves
//! it (`resize`, `delete`) first looks whether a process has its files open. That finds the mistake of a person
//! on this node; what protects the data is the epoch.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use agent::config::units::Bytes;
use clap::Subcommand;
use engine::block::{BlockSize, VOLUME_BYTES_MAX};
use engine::volume::store::{self, DumpError};
use engine::volume::{Config, Directory, HostDirectory};

use crate::{Outcome, enough, print};

/// Whole pages, in bytes.
const PAGE_BYTES: u64 = 4096;

#[derive(Subcommand)]
pub enum Command {
    /// Make an empty volume in a new directory; it takes room only as it is written
    Create {
        /// Its directory, which must not exist
        path: PathBuf,
        /// How large hosts see it, up to 64TiB, like 10GiB
        #[arg(long, value_parser = size)]
        size: Bytes,
        /// Size of a block in bytes, 512 or 4096
        #[arg(long, default_value = "4096", value_parser = block)]
        block: BlockSize,
    },
    /// Show the volumes in a directory
    List {
        /// The directory that holds their directories
        #[arg(default_value = "/var/lib/tidegate")]
        root: PathBuf,
    },
    /// Read everything and compare it with its checksums; changes nothing
    Check {
        /// The volume's directory
        path: PathBuf,
    },
    /// Print what the volume's files say: extents, map, log; changes nothing
    Dump {
        /// The volume's directory
        path: PathBuf,
    },
    /// Give a volume that nobody serves another size
    Resize {
        /// The volume's directory
        path: PathBuf,
        /// The new size, like 20GiB
        #[arg(long, value_parser = size)]
        size: Bytes,
        /// Allow a smaller size: what lies behind it is lost
        #[arg(long)]
        shrink: bool,
    },
    /// Delete a volume that nobody serves, with its data
    Delete {
        /// The volume's directory
        path: PathBuf,
    },
}

/// Why a volume was left as it is.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{}: there is no volume; `volume list DIRECTORY` shows those in a directory", .0.display())]
    Missing(PathBuf),
    #[error(
        "{}: process {process} is using it; stop that data plane, or start it without this export, first",
        path.display()
    )]
    InUse { path: PathBuf, process: u32 },
    #[error("the size must be whole 4 KiB pages")]
    Pages,
    #[error(
        "{}: {} is smaller than it is ({}), and what lies behind that is lost; say --shrink if that is meant",
        path.display(), shown(*wanted), shown(*now)
    )]
    Smaller { path: PathBuf, now: u64, wanted: u64 },
    #[error(
        "{}: {count} {}; restore those blocks from a copy",
        path.display(),
        if *count == 1 { "problem" } else { "problems" }
    )]
    Damaged { path: PathBuf, count: u64 },
    #[error(
        "{}: {count} did not fit, but process {process} is using it and changes it meanwhile; stop that data plane and \
         check again before you believe it",
        path.display()
    )]
    Moving { path: PathBuf, count: u64, process: u32 },
    #[error("{}: {source}", path.display())]
    Volume { path: PathBuf, source: Box<dyn std::error::Error> },
}

pub fn run(command: Command) -> Outcome {
    match command {
        Command::Create { path, size, block } => create(&path, size.0, block),
        Command::List { root } => list(&root),
        Command::Check { path } => check(&path),
        Command::Dump { path } => dump(&path),
        Command::Resize { path, size, shrink } => resize(&path, size.0, shrink),
        Command::Delete { path } => delete(&path),
    }
}

fn size(text: &str) -> Result<Bytes, String> {
    Bytes::parse(text).ok_or_else(|| "a size is written like 512MiB, 10GiB or 1TiB".to_owned())
}

fn block(text: &str) -> Result<BlockSize, String> {
    let size = text.parse().ok().and_then(BlockSize::from_bytes);
    size.ok_or_else(|| "a block has 512 or 4096 bytes".to_owned())
}

fn create(path: &Path, bytes: u64, block: BlockSize) -> Outcome {
    // Said before there is a directory, so that nothing is left behind.
    if bytes == 0 || bytes > VOLUME_BYTES_MAX || !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(store::CreateError::Size { bytes }.into());
    }
    store::create(path, bytes, block)?;
    print(format!("{}: {} in blocks of {} bytes\n", path.display(), shown(bytes), block.bytes()).as_bytes())
}

fn list(root: &Path) -> Outcome {
    let volumes = store::list(root).map_err(|source| failed(root, source))?;
    let width = volumes.iter().map(|volume| volume.name.chars().count()).max().unwrap_or(0).max(6);
    let mut out = format!(
        "{:width$}  {:>10}  {:>5}  {:>10}  {:32}  EPOCH\n",
        "VOLUME", "SIZE", "BLOCK", "DATA", "IDENTITY"
    );
    for volume in &volumes {
        let name = &volume.name;
        out += &match &volume.summary {
            Ok(summary) => format!(
                "{name:width$}  {:>10}  {:>5}  {:>10}  {:032x}  {}\n",
                shown(summary.blocks << summary.size.shift()),
                summary.size.bytes(),
                shown(summary.pages * PAGE_BYTES),
                u128::from_be_bytes(summary.identity),
                summary.epoch
            ),
            Err(why) => format!("{name:width$}  {why}\n"),
        };
    }
    print(out.as_bytes())
}

fn check(path: &Path) -> Outcome {
    let directory = find(path)?;
    let checked = store::check(&directory).map_err(|source| failed(path, source))?;
    let mut out = String::new();
    for problem in &checked.problems {
        out += &format!("{problem}\n");
    }
    let more = checked.problem_count - checked.problems.len() as u64;
    if more > 0 {
        out += &format!("and {more} more\n");
    }
    let (pages, leaves, (batches, cut)) = (checked.pages, checked.leaves, checked.batches);
    out += &format!(
        "{}: {pages} pages, {leaves} leaves of the map and {batches} batches of the log read",
        path.display()
    );
    if cut > 0 {
        out += &format!("; {cut} batches behind them were never whole, and count for nothing");
    }
    out += if checked.problem_count == 0 { "; all is well\n" } else { "\n" };
    print(out.as_bytes())?;
    let (path, count) = (path.to_owned(), checked.problem_count);
    match user(&path) {
        _ if count == 0 => Ok(()),
        Some(process) => Err(Refusal::Moving { path, count, process }.into()),
        None => Err(Refusal::Damaged { path, count }.into()),
    }
}

fn dump(path: &Path) -> Outcome {
    let directory = find(path)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match store::dump(&directory, &mut out) {
        Ok(()) => out.flush().or_else(enough),
        Err(DumpError::Output(error)) => enough(error),
        Err(DumpError::Open(source)) => Err(failed(path, source).into()),
    }
}

fn resize(path: &Path, bytes: u64, shrink: bool) -> Outcome {
    let directory = find(path)?;
    let summary = store::summary(&directory).map_err(|source| failed(path, source))?;
    let now = summary.blocks << summary.size.shift();
    if !bytes.is_multiple_of(PAGE_BYTES) {
        return Err(Refusal::Pages.into());
    }
    if bytes < now && !shrink {
        return Err(Refusal::Smaller { path: path.to_owned(), now, wanted: bytes }.into());
    }
    unused(path)?;
    store::resize(&directory, &Config::default(), bytes >> summary.size.shift())
        .map_err(|source| failed(path, source))?;
    print(format!("{}: {}, was {}\n", path.display(), shown(bytes), shown(now)).as_bytes())
}

fn delete(path: &Path) -> Outcome {
    let directory = find(path)?;
    unused(path)?;
    store::delete(&directory).map_err(|source| failed(path, source))?;
    print(format!("{}: deleted\n", path.display()).as_bytes())
}

/// A directory with files of a volume in it, damaged or half deleted as they may be.
fn find(path: &Path) -> Result<HostDirectory, Refusal> {
    let directory = HostDirectory::open(path).map_err(|_| Refusal::Missing(path.to_owned()))?;
    let names = directory.list().map_err(|source| failed(path, source))?;
    if names.is_empty() { Err(Refusal::Missing(path.to_owned())) } else { Ok(directory) }
}

fn failed(path: &Path, source: impl std::error::Error + 'static) -> Refusal {
    Refusal::Volume { path: path.to_owned(), source: Box::new(source) }
}

fn unused(path: &Path) -> Result<(), Refusal> {
    let refuse = |process| Refusal::InUse { path: path.to_owned(), process };
    user(path).map_or(Ok(()), |process| Err(refuse(process)))
}

/// A process that has a directory or a file in it open, as far as we may see.
fn user(path: &Path) -> Option<u32> {
    let path = fs::canonicalize(path).ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|process: &u32| {
        let files = fs::read_dir(format!("/proc/{process}/fd"));
        files.into_iter().flatten().flatten().any(|file| {
            *process != std::process::id()
                && fs::read_link(file.path()).is_ok_and(|file| file.starts_with(&path))
        })
    })
}

/// Bytes as a person reads them, and exactly where that is short.
fn shown(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift {
            let whole = bytes.is_multiple_of(1 << shift);
            let value = bytes as f64 / (1_u64 << shift) as f64;
            return if whole { format!("{}{unit}", bytes >> shift) } else { format!("{value:.2}{unit}") };
        }
    }
    format!("{bytes}B")
}
