//! Where workers wait for each other before they end: none may empty its rings for good while another one
//! still fills them.
//!
//! Like a barrier, but whoever goes away without coming counts as come: a worker that panicked hands nothing
//! over any more, and must not keep the others from ending.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// One participant's place at a meeting.
#[derive(Debug)]
pub(crate) struct Seat {
    meeting: Arc<Meeting>,
    came: bool,
}

#[derive(Debug)]
struct Meeting {
    missing: Mutex<usize>,
    complete: Condvar,
}

/// A meeting of `count` participants, as their seats.
pub(crate) fn meeting(count: usize) -> Vec<Seat> {
    let meeting = Arc::new(Meeting { missing: Mutex::new(count), complete: Condvar::new() });
    (0..count).map(|_| Seat { meeting: Arc::clone(&meeting), came: false }).collect()
}

impl Seat {
    /// Comes, and waits until everybody has come or gone.
    pub fn meet(&mut self) {
        self.come();
        let missing = self.meeting.missing.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.meeting.complete.wait_while(missing, |missing| *missing > 0));
    }

    fn come(&mut self) {
        if !std::mem::replace(&mut self.came, true) {
            *self.meeting.missing.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            self.meeting.complete.notify_all();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.come();
    }
}

#[cfg(test)]
mod tests {
    //! Everybody comes, or goes.

    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn nobody_leaves_before_all_have_come_or_gone() {
        let mut seats = meeting(3);
        let (gone, come) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let (mut last, mut first) = (seats.pop().unwrap(), seats.pop().unwrap());
            let other = seats.pop().unwrap();
            let (come, gone) = (&come, &gone);
            scope.spawn(move || {
                first.meet();
                come.fetch_add(1, Ordering::SeqCst);
                assert_eq!(gone.load(Ordering::SeqCst), 1, "the meeting waited for the last one");
            });
            // A participant that dies without a word.
            let died = scope.spawn(move || {
                let _seat = other;
                panic!("on purpose");
            });
            assert!(died.join().is_err());
            gone.fetch_add(1, Ordering::SeqCst);
            last.meet();
        });
        assert_eq!(come.into_inner(), 1);
    }
}
