//! An I/O as a person reads it: its spans under each other, each where its time lies.

use std::fmt::Write;

use crate::traces::{OneTrace, TraceReport};

/// Characters of a bar.
const WIDTH: usize = 48;

/// Draws one I/O.
pub fn draw(trace: &OneTrace) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "{}  {} {} at block {}  {}  {}  trace {}",
        trace.export,
        trace.kind,
        bytes(trace.bytes),
        trace.lba,
        trace.status,
        time(trace.total_ns),
        trace.id
    );
    if let Some(outlier) = &trace.outlier {
        let (median, threshold) = (time(outlier.median_ns), time(outlier.threshold_ns));
        let _ = write!(out, "  OUTLIER: {} (usual {median}, limit {threshold})", outlier.culprit);
    }
    out.push('\n');
    for span in &trace.spans {
        let share = span.ns as f64 / trace.total_ns.max(1) as f64;
        let bar = bar(span.at_ns, span.ns, trace.total_ns);
        let _ = writeln!(out, "  {:<9}{:>10}{:>5.0} % |{bar}|", span.stage, time(span.ns), share * 100.0);
    }
    if trace.missing > 0 {
        let _ = writeln!(out, "  {} of its spans were lost", trace.missing);
    }
    if trace.depends_total > 0 {
        let more = (trace.depends_total as usize).saturating_sub(trace.depends.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = writeln!(out, "  depends on {}{more}", trace.depends.join(", "));
    }
    out
}

/// What was collected, in a line.
pub fn summary(report: &TraceReport) -> String {
    let seen = &report.collected;
    format!(
        "{}  traces {}  outliers {} ({} suppressed)  lost records {}\n",
        report.node, seen.traces, seen.outliers, seen.suppressed, seen.lost
    )
}

fn bar(at_ns: u64, ns: u64, total_ns: u64) -> String {
    let place = |ns: u64| (ns as f64 / total_ns.max(1) as f64 * WIDTH as f64).round() as usize;
    let from = place(at_ns).min(WIDTH - 1);
    // Nothing that took time is invisible.
    let to = place(at_ns.saturating_add(ns)).clamp(from + 1, WIDTH);
    format!("{}{}{}", " ".repeat(from), "#".repeat(to - from), " ".repeat(WIDTH - to))
}

/// A time with three digits and its unit.
pub(crate) fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

fn bytes(bytes: u32) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::{OneSpan, OutlierReport};

    #[test]
    fn spans_stand_under_each_other_where_their_time_lies() {
        let span = |stage: &str, at_ns, ns| OneSpan { stage: stage.to_owned(), at_ns, ns };
        let trace = OneTrace {
            number: 1,
            id: "00a1".to_owned(),
            export: "root".to_owned(),
            medium: "file".to_owned(),
            kind: "flush".to_owned(),
            status: "ok".to_owned(),
            lba: 7,
            bytes: 4096,
            started_ns: 5,
            total_ns: 4_800_000,
            spans: vec![
                span("receive", 0, 900),
                span("sync", 900, 4_700_000),
                span("sent", 4_700_900, 99_100),
            ],
            depends: vec!["00a0".to_owned()],
            depends_total: 3,
            missing: 1,
            outlier: Some(OutlierReport {
                culprit: "sync".to_owned(),
                median_ns: 1_230_000,
                threshold_ns: 2_000_000,
            }),
        };
        let drawn = draw(&trace);
        let lines: Vec<&str> = drawn.lines().collect();
        let head = "root  flush 4 KiB at block 7  ok  4.80 ms  trace 00a1  OUTLIER: sync (usual 1.23 ms, limit 2.00 ms)";
        assert_eq!(lines[0], head);
        assert_eq!(lines[1], format!("  receive      900 ns    0 % |#{}|", " ".repeat(47)));
        assert_eq!(lines[2], format!("  sync        4.70 ms   98 % |{} |", "#".repeat(47)));
        assert_eq!(lines[3], format!("  sent        99.1 us    2 % |{}#|", " ".repeat(47)));
        assert_eq!(lines[4..], ["  1 of its spans were lost", "  depends on 00a0 and 2 more"]);
    }

    #[test]
    fn times_and_lengths_are_short() {
        assert_eq!(
            [time(999), time(1_000), time(12_345), time(123_456_789)],
            ["999 ns", "1.00 us", "12.3 us", "123 ms"]
        );
        assert_eq!([time(0), time(61_000_000_000)], ["0 ns", "61.0 s"]);
        assert_eq!([bytes(512), bytes(128 << 10), bytes(1 << 20)], ["512 B", "128 KiB", "1 MiB"]);
    }
}
