//! Opening files, and what to tell the operator about them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use block::{Fault, FileId, FileName, VolumeId};
use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fcntl_setfl, openat};
use rustix::io::Errno;

use super::{Attached, FileError, FileMedia, Open};

/// What an operator should know: it works, but not as well as it could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The payload memory could not be registered with the ring.
    NotRegistered(String),
    /// The number of threads of the ring cannot be set.
    FewThreads(String),
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
            Notice::FewThreads(why) => write!(
                f,
                "the number of io_uring's threads cannot be set ({why}; that needs Linux 5.15): a device that does not \
                 answer may hold up volumes on others"
            ),
            Notice::NotDirect { volume, file } => write!(
                f,
                "volume {volume}: the file system has no direct I/O ({file}): data passes through the page cache"
            ),
        }
    }
}

/// File systems that know in memory which names there are: ext4, XFS, btrfs, tmpfs, F2FS, ZFS, bcachefs, overlayfs
/// (statfs(2)). Others may have to ask a server.
const LOCAL: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e, 0x794c_7630];

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

impl FileMedia {
    pub(super) fn open(&mut self, volume: VolumeId, file: FileId, name: FileName) -> Result<(), Fault> {
        let attached = self.volumes.get(&volume).ok_or(Fault::Missing)?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = openat(&attached.directory, name.to_string(), flags, Mode::empty()).map_err(fault)?;
        self.direct(volume, name, &fd)?;
        self.keep(volume, file, fd)
    }

    /// Has a file be read and written past the page cache, when asked and possible.
    pub(super) fn direct(&mut self, volume: VolumeId, name: FileName, fd: &OwnedFd) -> Result<(), Fault> {
        if !self.config.direct {
            return Ok(());
        }
        match fcntl_setfl(fd, OFlags::DIRECT) {
            Ok(()) => return Ok(()),
            // fcntl(2): EINVAL is what a file system without O_DIRECT answers.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(fault(errno)),
        }
        let told = |notice: &Notice| matches!(notice, Notice::NotDirect { volume: v, .. } if *v == volume);
        if !self.notices.iter().any(told) {
            self.notices.push(Notice::NotDirect { volume, file: name });
        }
        Ok(())
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
}

impl Attached {
    /// The directory of a volume, of which no file is open yet. A file system may have to ask a server, which answers
    /// when it does: nobody whom others wait for should ask it.
    pub fn open(path: &Path) -> Result<Attached, FileError> {
        let failed =
            |errno: Errno| FileError::Directory { path: path.display().to_string(), source: errno.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let device = rustix::fs::fstat(&directory).map_err(failed)?.st_dev;
        let kind = rustix::fs::fstatfs(&directory).map_err(failed)?.f_type as u64;
        Ok(Attached { directory, device, answers_at_once: LOCAL.contains(&kind), files: Vec::new() })
    }

    pub(super) fn probe(&self, name: FileName) -> Result<(), Fault> {
        match accessat(&self.directory, name.to_string(), Access::EXISTS, AtFlags::empty()) {
            Ok(()) => Err(Fault::Exists),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(fault(errno)),
        }
    }
}
