//! Who decides: questions of the core go to a thread, answers come back to the core.
//!
//! Invariant: the core never waits for a policy; a question for which there is no place is answered by the core itself
//! when its time is over.

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing::warn;
use verdict::{Decide, Native};

use crate::driver::Driver;

/// Questions that wait.
const QUEUE: usize = 1024;

/// Asks whoever decides.
pub struct Policies {
    questions: Sender<control_core::Ask>,
}

/// Why nobody can decide.
#[derive(Debug, thiserror::Error)]
pub enum PoliciesError {
    /// No thread.
    #[error("cannot start the thread of policies: {0}")]
    Thread(#[from] std::io::Error),
}

impl Policies {
    /// Starts the thread; answers go to `driver`.
    pub fn open(driver: Driver) -> Result<Policies, PoliciesError> {
        let (questions, asked) = bounded(QUEUE);
        std::thread::Builder::new()
            .name("tidegate-policy".to_owned())
            .spawn(move || decide(&asked, &driver))?;
        Ok(Policies { questions })
    }

    /// Asks; the answer goes to the driver.
    pub fn ask(&self, ask: control_core::Ask) {
        if self.questions.try_send(ask).is_err() {
            warn!("more questions wait than policies can answer; the native default answers this one");
        }
    }
}

fn decide(asked: &Receiver<control_core::Ask>, driver: &Driver) {
    let mut native = Native::default();
    for control_core::Ask { id, tick, question } in asked {
        driver.decided(id, native.decide(tick, &question));
    }
}
