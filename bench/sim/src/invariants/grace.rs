//! What was revoked is gone when its grace is over, whatever its holder and the node do.

use std::collections::BTreeMap;

use contract::{Class, LeaseId, LeaseState};
use control_core::Core;

use super::First;

/// A step leaves work to the next one when it changed much, and the next may come so late.
const SLACK_MS: u64 = 1_000;

/// Leases on their way out, and when that was seen first.
#[derive(Clone, Debug, Default)]
pub struct Grace {
    /// The first violation.
    pub first: First,
    seen_ms: BTreeMap<LeaseId, u64>,
}

impl Grace {
    /// After each step of the core.
    pub fn after_step(&mut self, core: &Core) {
        let now_ms = core.now_ms();
        let grace_ms = u64::from(core.config().grace_max_ms);
        let before = std::mem::take(&mut self.seen_ms);
        for lease in core.leases() {
            let LeaseState::Revoked { ends_ms } = lease.state else { continue };
            let since_ms = before.get(&lease.id).copied().unwrap_or(now_ms);
            self.seen_ms.insert(lease.id, since_ms);
            self.first
                .check(lease.class == Class::Revocable, || format!("{} was firm and is revoked", lease.id));
            self.first.check(ends_ms <= since_ms + grace_ms, || {
                format!("{} was revoked at {since_ms} ms and may stay until {ends_ms} ms", lease.id)
            });
            self.first.check(now_ms <= since_ms + grace_ms + SLACK_MS, || {
                format!("{} was revoked at {since_ms} ms and is there at {now_ms} ms", lease.id)
            });
        }
    }
}
