//! What the idle ladder promises, beside what was measured.

use crate::report::{Idle, Row, markdown};

use super::{HEADS, MODES, OTHERS};

/// A promise: what was measured, and the most that it may be.
struct Goal {
    says: &'static str,
    measured: f64,
    at_most: f64,
    unit: &'static str,
}

fn find<'a>(rows: &'a [Row], mode: &str, which: impl Fn(&Row, &Idle) -> bool) -> Option<&'a Idle> {
    let mut matching = rows.iter().filter_map(|row| Some((row, row.idle.as_ref()?)));
    matching.find(|(row, idle)| idle.mode == mode && which(row, idle)).map(|(_, idle)| idle)
}

fn goals(rows: &[Row]) -> Option<Vec<Goal>> {
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
            says: "an idle worker's share of its processor",
            measured: still.cpu_share * 100.0,
            at_most: 1.0,
            unit: "%",
        },
        Goal {
            says: "bursts: p99 of packets 2..64, at most 1.2 times that of pure spin",
            measured: others.p99_us?,
            at_most: 1.2 * spin_others.p99_us?,
            unit: "us",
        },
        Goal {
            says: "bursts: p99 of heads, at most pure spin and 1.5 times the wake-up of block in poll",
            measured: heads.p99_us?,
            at_most: spin_heads.p99_us? + 1.5 * wake_us.max(0.0),
            unit: "us",
        },
        Goal {
            says: "bursts: share of the processor, at most 40 % of what pure spin uses",
            measured: heads.cpu_share * 100.0,
            at_most: 40.0 * spin_heads.cpu_share,
            unit: "%",
        },
    ])
}

/// Each promise with its figures, and whether it was kept in this measurement.
pub(super) fn table(rows: &[Row]) -> String {
    let lines = goals(rows).unwrap_or_default().into_iter().map(|goal| {
        let figure = |value: f64| format!("{value:.1} {}", goal.unit);
        let kept = if goal.measured <= goal.at_most { "yes" } else { "no" };
        vec![goal.says.to_owned(), figure(goal.measured), figure(goal.at_most), kept.to_owned()]
    });
    markdown(&["goal", "measured", "at most", "kept"], &lines.collect::<Vec<_>>())
}
