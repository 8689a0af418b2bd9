//! What the idle ladder promises, beside what was measured.

use crate::report::{Bound, Goal, Idle, Row};

use super::{HEADS, MODES, OTHERS};

fn find<'a>(rows: &'a [Row], mode: &str, which: impl Fn(&Row, &Idle) -> bool) -> Option<&'a Idle> {
    let mut matching = rows.iter().filter_map(|row| Some((row, row.idle.as_ref()?)));
    matching.find(|(row, idle)| idle.mode == mode && which(row, idle)).map(|(_, idle)| idle)
}

/// Each promise with its figures; none if not all was measured that it needs.
pub(super) fn goals(rows: &[Row]) -> Option<Vec<Goal>> {
    let [adaptive, spin, block] = MODES;
    let still = find(rows, adaptive, |_, idle| idle.rate_pps == 0)?;
    let burst = |mode: &str, which: &str| find(rows, mode, |row, _| row.pipeline.ends_with(which));
    let (heads, others) = (burst(adaptive, HEADS)?, burst(adaptive, OTHERS)?);
    let (spin_heads, spin_others, block_heads) =
        (burst(spin, HEADS)?, burst(spin, OTHERS)?, burst(block, HEADS)?);
    // What waking up costs a receiver that always has to.
    let wake_us = block_heads.p99_us? - spin_heads.p99_us?;
    Some(vec![
        Goal {
            says: "an idle worker's share of its processor".to_owned(),
            measured: Some(still.cpu_share * 100.0),
            bound: Bound::AtMost(1.0),
            unit: "%",
        },
        Goal {
            says: "bursts: p99 of packets 2..64, at most 1.2 times that of pure spin".to_owned(),
            measured: Some(others.p99_us?),
            bound: Bound::AtMost(1.2 * spin_others.p99_us?),
            unit: "us",
        },
        Goal {
            says: "bursts: p99 of heads, at most pure spin and 1.5 times the wake-up of block in poll"
                .to_owned(),
            measured: Some(heads.p99_us?),
            bound: Bound::AtMost(spin_heads.p99_us? + 1.5 * wake_us.max(0.0)),
            unit: "us",
        },
        Goal {
            says: "bursts: share of the processor, at most 40 % of what pure spin uses".to_owned(),
            measured: Some(heads.cpu_share * 100.0),
            bound: Bound::AtMost(40.0 * spin_heads.cpu_share),
            unit: "%",
        },
    ])
}
