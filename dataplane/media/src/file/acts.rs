//! Requests to ring entries, and completions back.
//!
//! The user data of an entry is the slot and, above it, the piece or the stage.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use block::{Act, Fault, FileId, FileName, Request};
use frame::IoBuffer;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};

use super::open::fault_of;
use super::{FileMedia, REGISTERED_BYTES, Slot};

/// The stage of an entry that syncs the directory, where pieces have their number.
const SYNC_DIRECTORY: u32 = 1;
/// The stage of an entry that closes a file that was removed.
const CLOSE: u32 = 2;

impl FileMedia {
    /// Takes a request into a slot; `room` was checked, and that of its device.
    pub(super) fn begin(&mut self, request: Request<IoBuffer>, device: usize) {
        let Some(index) = self.free.pop() else {
            self.devices.slot_ended(device);
            return self.ready.push(request.finished(Err(Fault::NoSpace)));
        };
        let result = self.check(&request);
        let pending = match request.act {
            Act::Read | Act::Write => request.pieces.len() as u32,
            _ => 1,
        };
        let path = match request.act {
            // INVARIANT: a file name is letters, digits and dots.
            Act::Create { name, .. }
            | Act::Remove { name, .. }
            | Act::Open { name, .. }
            | Act::Probe(name) => CString::new(name.to_string()).ok(),
            _ => None,
        };
        let statx = matches!(request.act, Act::Probe(_)).then(|| Box::new(MaybeUninit::uninit()));
        let refused = result.is_err() || pending == 0;
        let pending = if refused { 1 } else { pending };
        let (created, closing) = (None, None);
        let slot = Slot { request, device, pending, result, path, statx, created, closing };
        self.slots[index as usize] = Some(slot);
        if refused {
            return self.end_entry(index);
        }
        (0..pending).for_each(|piece| self.devices.wait(device, (index, piece)));
        self.push_backlog();
    }

    /// That every piece lies in the buffer and in a file that is open.
    fn check(&self, request: &Request<IoBuffer>) -> Result<(), Fault> {
        let open = |file: FileId| self.fd(request.volume, file).map(|_| ()).ok_or(Fault::Missing);
        match request.act {
            Act::Read | Act::Write => {
                let bytes = request.buffer.as_ref().map_or(0, IoBuffer::capacity) as u64;
                for piece in &request.pieces {
                    open(piece.file)?;
                    if u64::from(piece.at) + u64::from(piece.bytes) > bytes {
                        return Err(Fault::Io(libc::EINVAL));
                    }
                }
                Ok(())
            }
            Act::Sync(file) | Act::Allocate { file, .. } | Act::Punch { file, .. } => open(file),
            _ => self.volumes.get(&request.volume).map(|_| ()).ok_or(Fault::Missing),
        }
    }

    /// Moves waiting parts into the ring, as many as fit.
    pub(super) fn push_backlog(&mut self) {
        let mut from = 0;
        while let Some((device, (index, part))) = self.devices.next(from) {
            from = device;
            let Some(entry) = self.entry(index, part) else {
                self.devices.taken(device, false);
                self.fail(index, Fault::Missing);
                continue;
            };
            // SAFETY: buffer, path and statx that the entry names are owned by the slot until the entry completes, and
            // the file descriptor stays open: a volume with a slot is not detached.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                return;
            }
            self.devices.taken(device, true);
        }
    }

    /// A part of a request that has a slot waits for the ring.
    fn again(&mut self, index: u32, part: u32) {
        if let Some(slot) = &self.slots[index as usize] {
            self.devices.wait(slot.device, (index, part));
        }
    }

    fn fail(&mut self, index: u32, fault: Fault) {
        if let Some(slot) = self.slots[index as usize].as_mut() {
            slot.result = slot.result.and(Err(fault));
        }
        self.end_entry(index);
    }

    fn entry(&mut self, index: u32, part: u32) -> Option<squeue::Entry> {
        let statx = self.slots[index as usize].as_mut()?.statx.as_mut().map(|statx| statx.as_mut_ptr());
        let slot = self.slots[index as usize].as_ref()?;
        let volume = slot.request.volume;
        let fd = |file: FileId| self.fd(volume, file).map(|fd| Fd(fd.as_raw_fd()));
        let directory = || self.volumes.get(&volume).map(|attached| Fd(attached.directory.as_raw_fd()));
        let entry = match slot.request.act {
            Act::Read | Act::Write => self.transfer(slot, part)?,
            Act::Sync(file) => opcode::Fsync::new(fd(file)?).flags(FsyncFlags::DATASYNC).build(),
            Act::Allocate { file, offset, bytes } => {
                opcode::Fallocate::new(fd(file)?, bytes).offset(offset).mode(0).build()
            }
            Act::Punch { file, offset, bytes } => opcode::Fallocate::new(fd(file)?, bytes)
                .offset(offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Act::Create { .. } | Act::Remove { .. } if part == SYNC_DIRECTORY => {
                opcode::Fsync::new(directory()?).build()
            }
            Act::Remove { .. } if part == CLOSE => opcode::Close::new(Fd(slot.closing?)).build(),
            Act::Create { .. } => opcode::OpenAt::new(directory()?, slot.path.as_ref()?.as_ptr())
                .flags(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC)
                .mode(0o600)
                .build(),
            Act::Remove { .. } => opcode::UnlinkAt::new(directory()?, slot.path.as_ref()?.as_ptr()).build(),
            Act::Open { .. } => opcode::OpenAt::new(directory()?, slot.path.as_ref()?.as_ptr())
                .flags(libc::O_RDWR | libc::O_CLOEXEC)
                .build(),
            Act::Probe(_) => opcode::Statx::new(directory()?, slot.path.as_ref()?.as_ptr(), statx?.cast())
                .flags(libc::AT_STATX_FORCE_SYNC)
                .build(),
        };
        // The kernel tries at once what it takes for quick. Where it has to ask a server that is not always so, nor where
        // the last one to close a file gives its room back.
        let at_once = self.volumes.get(&volume).is_some_and(|attached| attached.answers_at_once);
        let at_once = at_once && part != CLOSE;
        let flags = if at_once { squeue::Flags::empty() } else { squeue::Flags::ASYNC };
        Some(entry.user_data(u64::from(part) << 32 | u64::from(index)).flags(flags))
    }

    /// The entry of one piece of a read or write.
    fn transfer(&self, slot: &Slot, part: u32) -> Option<squeue::Entry> {
        let piece = slot.request.pieces.get(part as usize)?;
        let fd = Fd(self.fd(slot.request.volume, piece.file)?.as_raw_fd());
        let start = slot.request.buffer.as_ref()?.offset() + piece.at as usize;
        // A buffer never crosses from one registered part to the next: regions divide them.
        let part = (start / REGISTERED_BYTES) as u16;
        let address = self.slab.memory().0.as_ptr().wrapping_add(start);
        let write = slot.request.act == Act::Write;
        Some(match (write, self.registered) {
            (true, true) => {
                opcode::WriteFixed::new(fd, address, piece.bytes, part).offset(piece.offset).build()
            }
            (true, false) => opcode::Write::new(fd, address, piece.bytes).offset(piece.offset).build(),
            (false, true) => {
                opcode::ReadFixed::new(fd, address, piece.bytes, part).offset(piece.offset).build()
            }
            (false, false) => opcode::Read::new(fd, address, piece.bytes).offset(piece.offset).build(),
        })
    }

    /// Takes completions out of the ring.
    pub(super) fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            let (index, part) = (entry.user_data() as u32, (entry.user_data() >> 32) as u32);
            self.process_completion(index, part, entry.result());
        }
    }

    fn process_completion(&mut self, index: u32, part: u32, result: i32) {
        let Some(slot) = self.slots[index as usize].as_ref() else { return };
        let act = slot.request.act;
        self.devices.entry_ended(slot.device);
        if matches!(act, Act::Remove { .. }) && part == CLOSE {
            // close(2): it is closed, whatever it says.
            return self.again(index, SYNC_DIRECTORY);
        }
        if result == -libc::EINTR || result == -libc::EAGAIN {
            return self.again(index, part);
        }
        match act {
            Act::Read | Act::Write if result >= 0 => self.advance(index, part, result as u32),
            Act::Create { .. } if part != SYNC_DIRECTORY && result >= 0 => self.created(index, result),
            Act::Create { .. } if result >= 0 => self.name_created(index),
            Act::Open { file, name } if result >= 0 => self.opened(index, file, name, result),
            Act::Probe(_) if result == -libc::ENOENT => self.end_entry(index),
            Act::Probe(_) if result >= 0 => self.fail(index, Fault::Exists),
            Act::Remove { file, .. } if part != SYNC_DIRECTORY && result >= 0 => self.removed(index, file),
            _ if result < 0 => self.fail(index, fault_of(-result)),
            _ => self.end_entry(index),
        }
    }

    /// Accounts for bytes moved; the rest of a short transfer is asked for again.
    fn advance(&mut self, index: u32, part: u32, moved: u32) {
        let Some(slot) = self.slots[index as usize].as_mut() else { return };
        let Some(piece) = slot.request.pieces.get_mut(part as usize) else { return };
        if moved >= piece.bytes {
            return self.end_entry(index);
        }
        if moved == 0 {
            return self.fail(index, Fault::Short);
        }
        piece.offset += u64::from(moved);
        piece.at += moved;
        piece.bytes -= moved;
        self.again(index, part);
    }

    fn created(&mut self, index: u32, fd: RawFd) {
        // SAFETY: the kernel just opened it for this entry, and nobody else has the number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if let Some(slot) = self.slots[index as usize].as_mut() {
            slot.created = Some(fd);
        }
        self.again(index, SYNC_DIRECTORY);
    }

    /// The name of a new file is durable.
    fn name_created(&mut self, index: u32) {
        let Some(slot) = self.slots[index as usize].as_mut() else { return };
        match (slot.request.act, slot.created.take()) {
            (Act::Create { file, name }, Some(fd)) => self.take_in(index, file, name, fd),
            _ => self.end_entry(index),
        }
    }

    fn opened(&mut self, index: u32, file: FileId, name: FileName, fd: RawFd) {
        // SAFETY: the kernel just opened it for this entry, and nobody else has the number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        self.take_in(index, file, name, fd);
    }

    /// A file was opened, not yet past the page cache.
    fn take_in(&mut self, index: u32, file: FileId, name: FileName, fd: OwnedFd) {
        let Some(volume) = self.slots[index as usize].as_ref().map(|slot| slot.request.volume) else {
            return;
        };
        let result = self.direct(volume, name, &fd).and_then(|()| self.keep(volume, file, fd));
        match result {
            Ok(()) => self.end_entry(index),
            Err(fault) => self.fail(index, fault),
        }
    }

    /// A name is gone; what is open of it is closed.
    fn removed(&mut self, index: u32, file: FileId) {
        let Some(slot) = self.slots[index as usize].as_mut() else { return };
        let files = self.volumes.get_mut(&slot.request.volume).map(|attached| &mut attached.files);
        let open = files.and_then(|files| files.get_mut(file.0 as usize)?.take());
        slot.closing = open.map(|open| open.fd.into_raw_fd());
        let stage = if slot.closing.is_some() { CLOSE } else { SYNC_DIRECTORY };
        self.again(index, stage);
    }
}
