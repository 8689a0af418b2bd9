//! From a tenant's port.

use frame::{DropReason, Frame, Pool};

use crate::{Outcomes, Tables, Verdict};

/// Judges up to 32 frames that came in by tenants' ports (`Meta::ingress_port`); fills `outcomes` for the
/// first `batch.len()` entries.
pub fn process_tenant(tables: &Tables, pool: &Pool, batch: &mut [Frame], outcomes: &mut Outcomes) {
    let _ = (tables, pool);
    for (_, verdict) in batch.iter().zip(&mut outcomes.verdicts) {
        *verdict = Verdict::Drop(DropReason::NoRule);
    }
}
