//! Compiled policies, kept in a folder.
//!
//! A file is named by the component's digest and the engine's compatibility hash, begins with the SHA-256 of the
//! rest, and is written beside its name and renamed. Compiled code is run as it lies there, so it is taken only
//! from a folder and a file that belong to this user and that nobody else may write; anything else is compiled
//! again. The SHA-256 finds accidents; the permissions keep out who could make a new one.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use wasmtime::component::Component;

use crate::digest::Digest;
use crate::engine::Engine;

const HASH_BYTES: usize = 32;

/// A folder of compiled policies.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// What was found for a component.
pub(crate) enum Found {
    /// Ready to run.
    Compiled(Component),
    /// Nothing.
    Nothing,
    /// Something that is not run, and why.
    Refused(String),
}

impl Cache {
    /// Uses a folder; makes it for this user alone if there is none.
    pub fn open(folder: &Path) -> io::Result<Cache> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let cache = Cache { folder: folder.to_owned() };
        belongs_to_us(folder).map_err(io::Error::other)?;
        Ok(cache)
    }

    /// The file of a component for this engine.
    pub fn file(&self, engine: &Engine, digest: Digest) -> PathBuf {
        // Engines of another version, target or setting have another hash: their files are never looked at.
        let mut hash = DefaultHasher::new();
        engine.wasmtime().precompile_compatibility_hash().hash(&mut hash);
        self.folder.join(format!("{digest}-{:016x}.compiled", hash.finish()))
    }

    pub(crate) fn find(&self, engine: &Engine, digest: Digest) -> Found {
        let path = self.file(engine, digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Refused(format!("{}: {error}", path.display())),
        };
        if let Err(why) = belongs_to_us(&self.folder).and_then(|()| belongs_to_us(&path)) {
            return Found::Refused(why);
        }
        let sound = bytes.split_at_checked(HASH_BYTES).filter(|(hash, code)| *hash == Digest::of(code).0);
        let Some((_, code)) = sound else {
            return Found::Refused(format!("{} is damaged", path.display()));
        };
        match run_compiled(engine, code) {
            Ok(component) => Found::Compiled(component),
            Err(error) => Found::Refused(format!("{}: {error:#}", path.display())),
        }
    }

    pub(crate) fn remove(&self, engine: &Engine, digest: Digest) -> Result<(), String> {
        let path = self.file(engine, digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn keep(&self, engine: &Engine, digest: Digest, component: &Component) -> Result<(), String> {
        let path = self.file(engine, digest);
        let code = component.serialize().map_err(|error| format!("{}: {error:#}", path.display()))?;
        write_whole(&path, &code).map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// A reader sees the old file or the new one, and each only whole.
fn write_whole(path: &Path, code: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("{}-{:?}.new", std::process::id(), std::thread::current().id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file
        .write_all(&Digest::of(code).0)
        .and_then(|()| file.write_all(code))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn belongs_to_us(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!(
            "{} belongs to another user; compiled code from there is not run",
            path.display()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "{} may be written by others; compiled code from there is not run",
            path.display()
        ));
    }
    Ok(())
}

/// The one place where machine code comes from a file.
#[allow(unsafe_code)]
fn run_compiled(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: `code` must be what `Component::serialize` returned, unchanged. It is named by the component and by this
    // engine's compatibility hash, its SHA-256 is the one it was written with, and file and folder belong to
    // this user and cannot be written by another, so only this program has written it.
    unsafe { Component::deserialize(engine.wasmtime(), code) }
}
