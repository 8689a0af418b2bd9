//! Byte devices under volumes, polled and batched.
//!
//! A [`Media`] takes [`block::Request`]s of many volumes and answers each with one [`block::Finished`]. It knows
//! files, offsets and bytes, and nothing of volumes' formats. Two drivers: [`FileMedia`] (io_uring, direct
//! I/O, registered buffers) and [`MemoryMedia`] (bytes in hugepages, or no bytes at all, for measuring what lies
//! above).
//!
//! [`Faults`] stands between a volume and its medium and makes things go wrong, from a seed.
//!
//! A worker calls [`Media::submit`] for what its volumes ask, as long as there is [`Media::room`], then
//! [`Media::poll`] once per turn. Before it blocks it adds [`Media::wait_fd`] to its wait point.
//!
//! Invariants: a medium owns a request's buffer from `submit` until the answer, so nobody can touch bytes that
//! a kernel is reading or writing; what is under way is bounded; no request is lost, whatever the kernel says.
//!
//! Not yet: a bound on open files (each file of each volume stays open); I/O by polling the device.

mod faults;
mod file;
mod memory;

pub use faults::{FaultCounters, FaultSpec, Faults, NoProbability};
pub use file::{Attached, FileConfig, FileError, FileMedia, Notice};
pub use memory::MemoryMedia;

use std::os::fd::BorrowedFd;

use block::{Finished, Request};
use frame::{IoBuffer, IoPool};

/// A byte device that is polled.
pub trait Media {
    /// Begins a request, or hands it back when [`Media::room`] is 0, or its volume's device has its share of that: until
    /// something was answered.
    fn submit(&mut self, request: Request<IoBuffer>, pool: &IoPool) -> Result<(), Request<IoBuffer>>;

    /// How many more requests fit.
    fn room(&self) -> usize;

    /// Requests that are not answered yet.
    fn in_flight(&self) -> usize;

    /// Passes what was submitted on and appends the answers that there are. At most one system call for all of
    /// it, and none when nothing is under way.
    fn poll(&mut self, out: &mut Vec<Finished<IoBuffer>>);

    /// Readable when there may be answers; `None` when `poll` always has them at once.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;

    /// To be called after `wait_fd` was readable.
    fn clear_wait(&mut self);
}
