//! The one wait point of a worker (decision D5): one `epoll_pwait2` over the descriptors of its ports and
//! one eventfd for everything that other threads send it.
//!
//! [`WaitPoint::block`] is the whole armed wait: announce sleep, look at every queue once more through the
//! caller's closure, block, be awake again. There is no other way to block, so the second look cannot be
//! forgotten; the reasoning stands in [`crate::handshake`]. Producers hold a [`Waker`] and call
//! [`Waker::wake`] after each burst they publish: one fence and one load while the worker is awake, one
//! `write` when it sleeps.
//!
//! Time-outs are in nanoseconds; [`WaitPoint::prepare_thread`] takes the kernel's 50 us of timer slack
//! away. Descriptors are level-triggered: input that is left unread ends the next wait at once.

use crate::handshake::Handshake;
use rustix::event::epoll::{self, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{Errno, read, write};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::sync::Arc;

/// Where one worker sleeps. Owned by that worker.
pub struct WaitPoint {
    epoll: OwnedFd,
    ready: Vec<u32>,
    shared: Arc<Shared>,
}

/// Wakes one worker from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handshake: Handshake,
    eventfd: OwnedFd,
}

/// How a call of [`WaitPoint::block`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitEnd {
    /// The second look found work: no system call was made.
    FoundWork,
    /// A descriptor is ready ([`WaitPoint::ready`]) or a [`Waker`] rang.
    Woken,
    /// The time-out passed.
    TimedOut,
}

/// A wait point could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// No descriptor left for the epoll instance or the eventfd.
    #[error(
        "cannot make the worker's {what}: {source}; raise the limit of open files (ulimit -n, LimitNOFILE=)"
    )]
    Create {
        /// `epoll` or `eventfd`.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The kernel does not take this descriptor.
    #[error("cannot wait for input {token}: {source}; the port's descriptor cannot be polled or is closed")]
    Add {
        /// Token that was to name the descriptor.
        token: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// Tokens from [`TOKEN_MAX`] on are the wait point's own.
    #[error("input token {token} is reserved; use tokens below {TOKEN_MAX}")]
    Token {
        /// The token asked for.
        token: u32,
    },
    /// The descriptor was not being waited for.
    #[error("cannot stop waiting for an input: {source}; it was never added or is closed already")]
    Remove {
        /// What the kernel said.
        source: Errno,
    },
    /// The wait itself failed: the kernel is older than 5.11 or the process is short of memory.
    #[error("cannot wait for input: {source}; Linux 5.11 or newer is needed (epoll_pwait2)")]
    Wait {
        /// What the kernel said.
        source: Errno,
    },
}

impl WaitPoint {
    /// A wait point with no inputs but its wakers.
    pub fn new() -> Result<Self, WaitError> {
        let create = |what| move |source| WaitError::Create { what, source };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(create("epoll"))?;
        let eventfd =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(create("eventfd"))?;
        let command = epoll::EventData::new_u64(u64::from(COMMAND));
        epoll::add(&epoll, &eventfd, command, EventFlags::IN).map_err(create("epoll"))?;
        let shared = Arc::new(Shared { handshake: Handshake::new(), eventfd });
        Ok(Self { epoll, ready: Vec::with_capacity(EVENTS), shared })
    }

    /// Asks the kernel to end waits of the calling thread on time instead of up to 50 us late. Called once
    /// by the worker's own thread. False if the kernel refused: waits end late then.
    pub fn prepare_thread() -> bool {
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).is_ok()
    }

    /// A handle by which other threads wake this worker.
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// Waits for input on `fd` from now on and names it `token` in [`WaitPoint::ready`].
    pub fn add(&mut self, fd: BorrowedFd<'_>, token: u32) -> Result<(), WaitError> {
        self.register(fd, token, EventFlags::IN)
    }

    /// Names `fd` once each time that it becomes ready, for input, output or its end: whoever is told must use
    /// it up before the next time. For sockets, of which most are silent.
    pub fn add_edge(&mut self, fd: BorrowedFd<'_>, token: u32) -> Result<(), WaitError> {
        self.register(fd, token, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)
    }

    /// Stops waiting for `fd`. A descriptor that is closed for good leaves by itself.
    pub fn remove(&mut self, fd: BorrowedFd<'_>) -> Result<(), WaitError> {
        epoll::delete(&self.epoll, fd).map_err(|source| WaitError::Remove { source })?;
        Ok(())
    }

    /// Sees which inputs are ready without waiting: one system call. [`WaitPoint::ready`] has the tokens.
    pub fn poll(&mut self) -> Result<WaitEnd, WaitError> {
        self.wait(Some(0))
    }

    /// Sleeps until an input is ready, a waker rings, or `timeout_ns` passed (`None`: without limit).
    ///
    /// `found_work` is the second look: it must look at *every* queue that is fed with a [`Waker`], and at
    /// [`port::Port::has_input`] of every port, and is called exactly once, after sleep was announced.
    /// A signal ends the wait like a time-out.
    pub fn block(
        &mut self,
        timeout_ns: Option<u64>,
        found_work: impl FnOnce() -> bool,
    ) -> Result<WaitEnd, WaitError> {
        self.shared.handshake.arm();
        let end = if found_work() {
            self.ready.clear();
            Ok(WaitEnd::FoundWork)
        } else {
            self.wait(timeout_ns)
        };
        self.shared.handshake.disarm();
        end
    }

    /// Tokens of the inputs that the last wait found ready, in no order. An input that hung up or failed
    /// counts as ready: reading it tells why.
    pub fn ready(&self) -> &[u32] {
        &self.ready
    }

    fn register(&mut self, fd: BorrowedFd<'_>, token: u32, flags: EventFlags) -> Result<(), WaitError> {
        if token >= TOKEN_MAX {
            return Err(WaitError::Token { token });
        }
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(u64::from(token)), flags)
            .map_err(|source| WaitError::Add { token, source })
    }

    fn wait(&mut self, timeout_ns: Option<u64>) -> Result<WaitEnd, WaitError> {
        self.ready.clear();
        // More than these are still ready at the next wait.
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS];
        let timeout = timeout_ns.map(timespec);
        let events = match epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok((events, _)) if !events.is_empty() => events,
            Ok(_) | Err(Errno::INTR) => return Ok(WaitEnd::TimedOut),
            Err(source) => return Err(WaitError::Wait { source }),
        };
        for event in events {
            match event.data.u64() as u32 {
                COMMAND => self.shared.drain(),
                token => self.ready.push(token),
            }
        }
        Ok(WaitEnd::Woken)
    }
}

impl std::fmt::Debug for WaitPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitPoint").field("ready", &self.ready).finish()
    }
}

impl Waker {
    /// Wakes the worker if it sleeps. Call after publishing; once per burst is enough. True if the worker
    /// slept and was rung.
    #[inline]
    pub fn wake(&self) -> bool {
        let sleeps = self.shared.handshake.must_wake();
        if sleeps {
            self.shared.ring();
        }
        sleeps
    }
}

impl Shared {
    #[cold]
    fn ring(&self) {
        // The only failure is a counter at its limit, and then it is readable, which is all we want.
        let _ = write(&self.eventfd, &1_u64.to_ne_bytes());
    }

    fn drain(&self) {
        let mut count = [0_u8; 8];
        // Fails only if another wait drained it already.
        let _ = read(&self.eventfd, &mut count);
    }
}

fn timespec(ns: u64) -> Timespec {
    // u64::MAX ns are 584 years: both parts fit.
    Timespec { tv_sec: (ns / NS_PER_S) as i64, tv_nsec: (ns % NS_PER_S) as i64 }
}

const NS_PER_S: u64 = 1_000_000_000;
/// Tokens below this name inputs.
pub const TOKEN_MAX: u32 = 1 << 24;
const COMMAND: u32 = u32::MAX;
const EVENTS: usize = 64;

#[cfg(test)]
mod tests;
