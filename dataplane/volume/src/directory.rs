//! A volume's directory, one call at a time: for creating, opening, checking and deleting, which are rare and run on
//! a helper thread. While a volume serves, only [`crate::Volume`]'s requests to a medium reach its files.
//!
//! Invariants: [`Directory::create`] and [`Directory::remove`] are durable when they return; only
//! [`Directory::sync`] makes written bytes durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use block::FileName;
use rustix::fs::FallocateFlags;

/// Where the files of one volume are.
pub trait Directory {
    /// The files of the volume; others are passed over.
    fn list(&self) -> io::Result<Vec<FileName>>;
    /// Makes an empty file; [`io::ErrorKind::AlreadyExists`] when there is one.
    fn create(&self, name: FileName) -> io::Result<()>;
    /// Length of a file in bytes.
    fn len(&self, name: FileName) -> io::Result<u64>;
    /// Reads from `offset` until `into` is full or the file ends; how many bytes.
    fn read(&self, name: FileName, offset: u64, into: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write(&self, name: FileName, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written to a file durable, by whomever.
    fn sync(&self, name: FileName) -> io::Result<()>;
    /// Takes room for a range; what is not written of it reads as zeros.
    fn allocate(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()>;
    /// Gives the room of a range back; it reads as zeros then, and the file is as long as before.
    fn punch(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: FileName) -> io::Result<()>;
}

/// A directory of the host.
#[derive(Clone, Debug)]
pub struct HostDirectory {
    path: PathBuf,
}

impl HostDirectory {
    /// Uses a directory that exists.
    pub fn open(path: &Path) -> io::Result<HostDirectory> {
        if !path.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(HostDirectory { path: path.to_owned() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn at(&self, name: FileName) -> PathBuf {
        self.path.join(name.to_string())
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Directory for HostDirectory {
    fn list(&self) -> io::Result<Vec<FileName>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Some(Ok(name)) = entry?.file_name().to_str().map(str::parse) {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: FileName) -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).open(self.at(name))?;
        self.sync_directory()
    }

    fn len(&self, name: FileName) -> io::Result<u64> {
        Ok(std::fs::metadata(self.at(name))?.len())
    }

    fn read(&self, name: FileName, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = File::open(self.at(name))?;
        let mut done = 0;
        while done < into.len() {
            match file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write(&self, name: FileName, offset: u64, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.at(name))?.write_all_at(bytes, offset)
    }

    fn sync(&self, name: FileName) -> io::Result<()> {
        File::open(self.at(name))?.sync_data()
    }

    fn allocate(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.at(name))?;
        Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), offset, bytes)?)
    }

    fn punch(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.at(name))?;
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, how, offset, bytes)?)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        std::fs::remove_file(self.at(name))?;
        self.sync_directory()
    }
}
