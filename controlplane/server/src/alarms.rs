//! What somebody should look at, in the daemon's log and for whoever asks for the status.
//!
//! Invariants: there are never more than [`ALARMS_MAX`]; the same one again takes no more room, so that one that comes
//! again and again leaves the others where they are.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use contract::Alarm;
use tracing::warn;

/// Alarms that are kept.
const ALARMS_MAX: usize = 100;

/// See the module's documentation; clones are the same.
#[derive(Clone, Default)]
pub struct Alarms(Arc<Mutex<VecDeque<Alarm>>>);

impl Alarms {
    /// Says it, and keeps it as the newest.
    pub fn raise(&self, what: String) {
        warn!("alarm: {what}");
        let at_ms = host::wall_ms();
        let mut alarms = self.lock();
        let again = alarms.iter().position(|known| known.what == what).and_then(|at| alarms.remove(at));
        let times = again.map_or(1, |known| known.times.saturating_add(1));
        if alarms.len() == ALARMS_MAX {
            alarms.pop_front();
        }
        alarms.push_back(Alarm { at_ms, times, what });
    }

    /// The newest first.
    pub fn all(&self) -> Vec<Alarm> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Alarm>> {
        // Each is in it or not, at every instant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_hundred_are_kept_and_what_comes_again_is_counted() {
        let alarms = Alarms::default();
        alarms.raise("rare".to_owned());
        for _ in 0..1_000 {
            alarms.raise("often".to_owned());
        }
        let said = |at: usize| {
            let all = alarms.all();
            (all[at].what.clone(), all[at].times, all.len())
        };
        assert_eq!((said(0), said(1)), (("often".to_owned(), 1_000, 2), ("rare".to_owned(), 1, 2)));
        for number in 0..ALARMS_MAX {
            alarms.raise(number.to_string());
        }
        assert_eq!(said(0), ("99".to_owned(), 1, ALARMS_MAX));
        assert_eq!(said(ALARMS_MAX - 1), ("0".to_owned(), 1, ALARMS_MAX));
    }
}
