//! The report as a person reads it: rates between two reports, in aligned columns.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write;

use crate::report::{Credits, Export, LeftOut, Report, Volume, Worker};

/// Draws `now`; rates are per second since `before`.
pub fn draw(now: &Report, before: &Report) -> String {
    let seconds = now.at_ns.saturating_sub(before.at_ns).max(1) as f64 / 1e9;
    let rate = |now: u64, before: u64| now.wrapping_sub(before) as f64 / seconds;
    let shown = match now.volumes.len() {
        all if all == now.volumes_total => String::new(),
        some => format!(", {some} shown"),
    };
    let mut out = format!("{}  snapshot {}  volumes {}{shown}\n", now.node, now.version, now.volumes_total);
    workers(&mut out, now, before, &rate);
    ports(&mut out, now, before, &rate);
    volumes(&mut out, now, before, &rate);
    exports(&mut out, now, before, &rate);
    out
}

/// Writes a line; writing to a String cannot fail.
macro_rules! line {
    ($out:expr, $($words:tt)*) => { let _ = writeln!($out, $($words)*); };
}

type Rate<'a> = &'a dyn Fn(u64, u64) -> f64;

fn workers(out: &mut String, now: &Report, before: &Report, rate: Rate<'_>) {
    line!(
        out,
        "\n{:<8}{:>5}{:>10}{:>10}{:>10}{:>8}{:>8}{:>7}{:>7}{:>7}{:>7}  DROPS",
        "WORKER",
        "CPU",
        "RX/s",
        "TX/s",
        "DROP/s",
        "PARKED",
        "HELD",
        "WORK%",
        "SPIN%",
        "PAUSE%",
        "SLEEP%"
    );
    for (number, worker) in now.workers.iter().enumerate() {
        let old = before.workers.get(number);
        let get = |worker: &Worker, key: &str| worker.frames.get(key).copied().unwrap_or(0);
        let per_s = |key: &str| rate(get(worker, key), old.map_or(0, |old| get(old, key)));
        let share = |key: &str| {
            let ns = |worker: &Worker| worker.time.get(key).copied().unwrap_or(0);
            // 1e9 ns per second are 100 %.
            (rate(ns(worker), old.map_or(0, ns)) / 1e7).min(100.0)
        };
        let mut drops: Vec<(&String, &u64)> = worker.drops.iter().collect();
        drops.sort_by_key(|(_, count)| Reverse(**count));
        let drops: Vec<String> =
            drops.iter().take(3).map(|(reason, count)| format!("{reason} {count}")).collect();
        line!(
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
            if drops.is_empty() { "-".to_owned() } else { drops.join(", ") },
            if worker.balanced { "" } else { "  UNBALANCED" },
        );
    }
}

fn ports(out: &mut String, now: &Report, before: &Report, rate: Rate<'_>) {
    if now.ports.is_empty() {
        return;
    }
    if now.ports.is_empty() {
        return;
    }
    let width = width(now.ports.iter().map(|port| &port.name));
    line!(
        out,
        "\n{:<width$}{:>6}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}",
        "PORT",
        "STATE",
        "RX/s",
        "TX/s",
        "RX BIT/s",
        "TX BIT/s",
        "KDROPS",
        "TXERR"
    );
    for (number, port) in now.ports.iter().enumerate() {
        let old = before.ports.get(number);
        let get = |key: &str| port.counters.get(key).copied().unwrap_or(0);
        let per_s =
            |key: &str| rate(get(key), old.and_then(|old| old.counters.get(key)).copied().unwrap_or(0));
        let why = port.why.as_ref().map_or(String::new(), |why| format!("  {why}"));
        let faults: Vec<String> = ["lost", "doubled", "corrupted", "delayed"]
            .into_iter()
            .map(|what| (get(&format!("faults_{what}")), what))
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let faults = match faults.as_slice() {
            [] => String::new(),
            some => format!("  on purpose: {}", some.join(", ")),
        };
        line!(
            out,
            "{:<width$}{:>6}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}{faults}{why}",
            port.name,
            port.state,
            si(per_s("rx_frames")),
            si(per_s("tx_frames")),
            si(per_s("rx_bytes") * 8.0),
            si(per_s("tx_bytes") * 8.0),
            get("rx_kernel_drops"),
            get("tx_errors"),
        );
    }
}

fn volumes(out: &mut String, now: &Report, before: &Report, rate: Rate<'_>) {
    if now.volumes.is_empty() {
        return;
    }
    let width = width(now.volumes.iter().map(|volume| &volume.name));
    line!(
        out,
        "\n{:<width$}{:>10}{:>10}  {:<24}{:>10}{:>10}{:>8}{:>9}{:>9}",
        "VOLUME",
        "BYTE/s",
        "PKT/s",
        "CREDITS",
        "MAY BYTE",
        "MAY PKT",
        "PARKED",
        "MARKED",
        "DROPPED"
    );
    let old: HashMap<&str, &Volume> =
        before.volumes.iter().map(|volume| (volume.name.as_str(), volume)).collect();
    for volume in &now.volumes {
        // One that came with a reload has no rate yet.
        let old = *old.get(volume.name.as_str()).unwrap_or(&volume);
        let credits = if volume.bytes.burst_cap.is_some() { volume.bytes } else { volume.packets };
        let may = |credits: &Credits| credits.permitted_rate.map_or("-".to_owned(), |rate| si(rate as f64));
        line!(
            out,
            "{:<width$}{:>10}{:>10}  {:<24}{:>10}{:>10}{:>8}{:>9}{:>9}",
            volume.name,
            si(rate(volume.admitted_bytes, old.admitted_bytes)),
            si(rate(volume.admitted_packets, old.admitted_packets)),
            bar(&credits),
            may(&volume.bytes),
            may(&volume.packets),
            volume.parked_frames,
            volume.marked,
            volume.dropped,
        );
    }
}

fn exports(out: &mut String, now: &Report, before: &Report, rate: Rate<'_>) {
    for LeftOut { name, why } in &now.left_out {
        line!(
            out,
            "\nexport \"{name}\" is not served: {why}; when it is mended: `tidegate-dataplane reload`"
        );
    }
    if now.exports.is_empty() {
        return;
    }
    let width = width(now.exports.iter().map(|export| &export.name));
    line!(
        out,
        "\n{:<width$}{:>6}{:>10}{:>10}{:>10}{:>10}{:>17}{:>17}  {:<24}{:>10}{:>8}{:>9}{:>8}",
        "EXPORT",
        "CONNS",
        "READ/s",
        "WRITE/s",
        "RD BYTE/s",
        "WR BYTE/s",
        "RD p50/p99",
        "WR p50/p99",
        "CREDITS",
        "MAY OP",
        "WAITING",
        "WAITED%",
        "ERRORS"
    );
    let old: HashMap<&str, &Export> =
        before.exports.iter().map(|export| (export.name.as_str(), export)).collect();
    for export in &now.exports {
        let old = *old.get(export.name.as_str()).unwrap_or(&export);
        let get = |export: &Export, key: &str| export.counters.get(key).copied().unwrap_or(0);
        let per_s = |key: &str| si(rate(get(export, key), get(old, key)));
        let credits = if export.bytes.burst_cap.is_some() { export.bytes } else { export.operations };
        line!(
            out,
            "{:<width$}{:>6}{:>10}{:>10}{:>10}{:>10}{:>17}{:>17}  {:<24}{:>10}{:>8}{:>9}{:>8}",
            export.name,
            export.connections,
            per_s("reads"),
            per_s("writes"),
            per_s("read_bytes"),
            per_s("written_bytes"),
            quantiles(export, "read"),
            quantiles(export, "write"),
            bar(&credits),
            export.operations.permitted_rate.map_or("-".to_owned(), |rate| si(rate as f64)),
            export.waiting,
            // Of each second, summed over all that waited in it.
            format!("{:.1}", rate(export.waited_ns, old.waited_ns) / 1e7),
            get(export, "errors"),
        );
    }
}

/// Median and 99th percentile of a kind of request.
fn quantiles(export: &Export, kind: &str) -> String {
    let quantiles = export.latency.as_ref().and_then(|latency| latency.kinds.get(kind));
    quantiles.map_or("-".to_owned(), |one| {
        let short = |ns| crate::waterfall::time(ns).replace(' ', "");
        format!("{}/{}", short(one.p50_ns), short(one.p99_ns))
    })
}

/// Width of a first column with these names.
fn width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| name.chars().count() + 2).max().unwrap_or(0).max(12)
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
        let half =
            Credits { burst_level: Some(50), burst_cap: Some(100), work_level: None, permitted_rate: None };
        assert_eq!(bar(&half), "[#######.......]  50.0%");
        let debt = Credits { burst_level: Some(-5), ..half };
        assert_eq!(bar(&debt), "[..............]   0.0%");
    }
}
