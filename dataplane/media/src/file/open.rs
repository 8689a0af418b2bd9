//! Opening files, and what to tell the operator about them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use block::{Fault, FileId, FileName, VolumeId};
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, openat};
use rustix::io::Errno;

use super::{FileMedia, Open};

/// What an operator should know: it works, but not as well as it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The payload memory could not be registered with the ring.
    NotRegistered(String),
    /// The file system has no direct I/O.
    NotDirect {
        /// The volume.
        volume: VolumeId,
        /// The file that was opened first.
        file: FileName,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::NotRegistered(why) => write!(
                f,
                "payload memory is not registered with io_uring ({why}): each request maps its pages; raise the \
                 locked-memory limit (ulimit -l) to the size of the payload memory"
            ),
            Notice::NotDirect { volume, file } => write!(
                f,
                "volume {volume}: the file system has no direct I/O ({file}): data passes through the page cache"
            ),
        }
    }
}

pub(super) fn directory(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

pub(super) fn fault(errno: Errno) -> Fault {
    fault_of(errno.raw_os_error())
}

pub(super) fn fault_of(errno: i32) -> Fault {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Fault::NoSpace,
        libc::EEXIST => Fault::Exists,
        libc::ENOENT => Fault::Missing,
        other => Fault::Io(other),
    }
}

/// Opens a file past the page cache when asked and possible; true when it is.
fn open_direct(directory: BorrowedFd<'_>, name: FileName, direct: bool) -> Result<(OwnedFd, bool), Errno> {
    let (name, flags) = (name.to_string(), OFlags::RDWR | OFlags::CLOEXEC);
    if direct {
        match openat(directory, &name, flags | OFlags::DIRECT, Mode::empty()) {
            // open(2): EINVAL is what a file system without O_DIRECT answers.
            Err(Errno::INVAL) => {}
            other => return other.map(|fd| (fd, true)),
        }
    }
    openat(directory, &name, flags, Mode::empty()).map(|fd| (fd, false))
}

impl FileMedia {
    pub(super) fn open(&mut self, volume: VolumeId, file: FileId, name: FileName) -> Result<(), Fault> {
        let attached = self.volumes.get(&volume).ok_or(Fault::Missing)?;
        let (fd, is_direct) =
            open_direct(attached.directory.as_fd(), name, self.config.direct).map_err(fault)?;
        if self.config.direct && !is_direct {
            let told =
                |notice: &Notice| matches!(notice, Notice::NotDirect { volume: v, .. } if *v == volume);
            if !self.notices.iter().any(told) {
                self.notices.push(Notice::NotDirect { volume, file: name });
            }
        }
        self.keep(volume, file, fd)
    }

    /// Lets `file` stand for `fd`.
    pub(super) fn keep(&mut self, volume: VolumeId, file: FileId, fd: OwnedFd) -> Result<(), Fault> {
        let files = &mut self.volumes.get_mut(&volume).ok_or(Fault::Missing)?.files;
        let index = file.0 as usize;
        if files.len() <= index {
            files.resize_with(index + 1, || None);
        }
        files[index] = Some(Open { fd });
        Ok(())
    }

    pub(super) fn probe(&self, volume: VolumeId, name: FileName) -> Result<(), Fault> {
        let directory = &self.volumes.get(&volume).ok_or(Fault::Missing)?.directory;
        match accessat(directory, name.to_string(), Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Err(Fault::Exists),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(fault(errno)),
        }
    }
}
