//! From the underlay.

use frame::{DropReason, Frame, Pool};

use crate::{Outcomes, Tables, Verdict};

/// Judges up to 32 frames that came in by underlay ports (`Meta::ingress_port`); fills `outcomes` for the
/// first `batch.len()` entries. Frames judged [`Verdict::Deliver`] have lost their outer headers.
pub fn process_underlay(tables: &Tables, pool: &Pool, batch: &mut [Frame], outcomes: &mut Outcomes) {
    let _ = (tables, pool);
    for (_, verdict) in batch.iter().zip(&mut outcomes.verdicts) {
        *verdict = Verdict::Drop(DropReason::NoRule);
    }
}
