//! The report as a person reads it: rates between two reports, in aligned columns.

use std::fmt::Write;

use crate::report::{Credits, Report, Volume, Worker};

/// Draws `now`; rates are per second since `before`, or averages since the start without one.
pub fn draw(now: &Report, before: Option<&Report>) -> String {
    let mut out = String::new();
    let seconds = before.map_or(0.0, |before| now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9);
    let rate = |now: u64, before: u64| {
        if seconds > 0.0 { now.wrapping_sub(before) as f64 / seconds } else { 0.0 }
    };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}  snapshot {}  volumes {}", now.node, now.version, now.volumes_total);
    let _ = writeln!(
        out,
        "\n{:<8}{:>5}{:>10}{:>10}{:>10}{:>8}{:>8}{:>7}{:>7}{:>7}{:>7}  drops",
        "WORKER", "CPU", "RX/s", "TX/s", "DROP/s", "PARKED", "HELD", "WORK%", "SPIN%", "PAUSE%", "SLEEP%"
    );
    for (number, worker) in now.workers.iter().enumerate() {
        let old = before.and_then(|before| before.workers.get(number));
        let get = |worker: &Worker, key: &str| worker.frames.get(key).copied().unwrap_or(0);
        let per_s = |key: &str| rate(get(worker, key), old.map_or(0, |old| get(old, key)));
        let share = |key: &str| {
            let ns = |worker: &Worker| worker.time.get(key).copied().unwrap_or(0);
            rate(ns(worker), old.map_or(0, ns)) / 1e7
        };
        let mut drops: Vec<(&String, &u64)> = worker.drops.iter().collect();
        drops.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let drops: Vec<String> =
            drops.iter().take(3).map(|(reason, count)| format!("{reason} {count}")).collect();
        let _ = writeln!(
            out,
            "{:<8}{:>5}{:>10}{:>10}{:>10}{:>8}{:>8}{:>7.1}{:>7.1}{:>7.1}{:>7.1}  {}{}",
            number,
            worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string()),
            si(per_s("rx")),
            si(per_s("tx") + per_s("delivered")),
            si(per_s("dropped")),
            get(worker, "parked"),
            get(worker, "in_flight"),
            share("working_ns"),
            share("spinning_ns"),
            share("pausing_ns"),
            share("sleeping_ns"),
            drops.join(", "),
            if worker.balanced { "" } else { "  UNBALANCED" },
        );
    }
    let _ = writeln!(
        out,
        "\n{:<16}{:>6}{:>11}{:>11}{:>13}{:>13}{:>10}{:>8}",
        "PORT", "STATE", "RX/s", "TX/s", "RX BIT/s", "TX BIT/s", "KDROPS", "TXERR"
    );
    for port in &now.ports {
        let old = before.and_then(|before| before.ports.iter().find(|old| old.name == port.name));
        let get = |key: &str| port.counters.get(key).copied().unwrap_or(0);
        let per_s =
            |key: &str| rate(get(key), old.and_then(|old| old.counters.get(key)).copied().unwrap_or(0));
        let _ = writeln!(
            out,
            "{:<16}{:>6}{:>11}{:>11}{:>13}{:>13}{:>10}{:>8}  {}",
            port.name,
            port.state,
            si(per_s("rx_frames")),
            si(per_s("tx_frames")),
            si(per_s("rx_bytes") * 8.0),
            si(per_s("tx_bytes") * 8.0),
            get("rx_kernel_drops"),
            get("tx_errors"),
            port.why.as_deref().unwrap_or(""),
        );
    }
    volumes(&mut out, now, before, &rate);
    out
}

fn volumes(out: &mut String, now: &Report, before: Option<&Report>, rate: &dyn Fn(u64, u64) -> f64) {
    if now.volumes.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{:<16}{:>10}{:>10}  {:<24}{:>10}{:>8}{:>9}{:>9}",
        "VOLUME", "BYTE/s", "PKT/s", "CREDITS", "MAY/s", "PARKED", "MARKED", "DROPPED"
    );
    for volume in &now.volumes {
        let old = before.and_then(|before| before.volumes.iter().find(|old| old.name == volume.name));
        let per_s = |get: &dyn Fn(&Volume) -> u64| rate(get(volume), old.map_or(0, get));
        let credits = if volume.bytes.burst_cap.is_some() { volume.bytes } else { volume.packets };
        let _ = writeln!(
            out,
            "{:<16}{:>10}{:>10}  {:<24}{:>10}{:>8}{:>9}{:>9}",
            volume.name,
            si(per_s(&|volume| volume.admitted_bytes)),
            si(per_s(&|volume| volume.admitted_packets)),
            bar(&credits),
            volume.bytes.permitted_rate.or(volume.packets.permitted_rate).map_or("-".to_owned(), |rate| si(rate as f64)),
            volume.parked_frames,
            volume.marked,
            volume.dropped,
        );
    }
}

/// Credits as a bar and a percentage.
fn bar(credits: &Credits) -> String {
    let (Some(level), Some(cap)) = (credits.burst_level, credits.burst_cap) else { return "-".to_owned() };
    let part = (level.max(0) as f64 / cap.max(1) as f64).clamp(0.0, 1.0);
    let filled = (part * 14.0).round() as usize;
    format!("[{}{}] {:>5.1}%", "#".repeat(filled), ".".repeat(14 - filled), part * 100.0)
}

/// A number in at most seven characters: 999, 1.23k, 45.6M.
fn si(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 1e9 => (v / 1e9, "G"),
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e3 => (v / 1e3, "k"),
        v => return format!("{v:.0}"),
    };
    if value >= 100.0 { format!("{value:.0}{unit}") } else { format!("{value:.2}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_credits_are_a_bar() {
        assert_eq!(si(999.0), "999");
        assert_eq!(si(1234.0), "1.23k");
        assert_eq!(si(456_000_000.0), "456M");
        let half = Credits { burst_level: Some(50), burst_cap: Some(100), work_level: None, permitted_rate: None };
        assert_eq!(bar(&half), "[#######.......]  50.0%");
        let debt = Credits { burst_level: Some(-5), ..half };
        assert_eq!(bar(&debt), "[..............]   0.0%");
    }
}
