//! Results as a Markdown table, as JSON lines and as a plot.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use plotters::prelude::*;
use serde::Serialize;

use crate::Outcome;

/// One row of any of the benches: one object per line of the JSON file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// `rate`, `peers` or `idle`.
    pub bench: &'static str,
    /// What was done with each packet.
    pub pipeline: String,
    /// The port drivers used.
    pub port: String,
    /// Frame without the tunnel's headers, bytes.
    pub frame_bytes: usize,
    /// Rules looked up among.
    pub rules: u32,
    /// Flows in the trace.
    pub flows: u32,
    /// Time of one processor per packet, median.
    pub ns_per_packet: f64,
    /// 1,000 / `ns_per_packet`.
    pub mpps: f64,
    /// The other side, if any.
    pub peer: Option<String>,
    /// Its time per packet, median.
    pub peer_ns_per_packet: Option<f64>,
    /// Our time divided by the peer's: median of the pairs.
    pub ratio: Option<f64>,
    /// Measurements of each side.
    pub runs: usize,
    /// (largest - smallest) / median: of the ratios if there is a peer, else of our times.
    pub spread: f64,
    /// What only [`crate::idle`] measures.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Idle>,
}

/// What a row of the idle bench has more.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Idle {
    /// Packets per second offered.
    pub rate_pps: u64,
    /// How the worker idles.
    pub mode: String,
    /// Share of its processor that the worker used.
    pub cpu_share: f64,
    /// Round trip, median, microseconds.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    pub p999_us: Option<f64>,
    /// Share of the packets that were on their way while the client was interrupted, and are not counted.
    pub discarded: f64,
}

/// Median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// (largest - smallest) / median.
pub fn spread(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::MIN, f64::max);
    let smallest = values.iter().copied().fold(f64::MAX, f64::min);
    if values.len() < 2 { 0.0 } else { (largest - smallest) / median(values).max(f64::MIN_POSITIVE) }
}

/// A promise, and what was measured.
#[derive(Clone, Debug)]
pub struct Goal {
    /// In words.
    pub says: String,
    /// What came of it; `None` if nothing was measured, which shows nothing.
    pub measured: Option<f64>,
    /// What it is to be.
    pub bound: Bound,
    /// Of both.
    pub unit: &'static str,
}

/// Which side of a figure is good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No more than that.
    AtMost(f64),
    /// No less than that.
    AtLeast(f64),
}

impl Goal {
    /// Whether it was kept in this measurement.
    pub fn is_kept(&self) -> bool {
        self.measured.is_some_and(|measured| match self.bound {
            Bound::AtMost(most) => measured <= most,
            Bound::AtLeast(least) => measured >= least,
        })
    }
}

/// A table of promises, and whether all of them were kept.
pub fn goals(goals: &[Goal]) -> (String, bool) {
    let lines = goals.iter().map(|goal| {
        let bound = match goal.bound {
            Bound::AtMost(most) => format!("<= {most:.2} {}", goal.unit),
            Bound::AtLeast(least) => format!(">= {least:.2} {}", goal.unit),
        };
        let kept = if goal.is_kept() { "yes" } else { "no" };
        let figure = |measured| format!("{measured:.3} {}", goal.unit);
        let measured = goal.measured.map_or_else(|| "not measured".to_owned(), figure);
        vec![goal.says.clone(), measured, bound, kept.to_owned()]
    });
    let table = markdown(&["goal", "measured", "bound", "kept"], &lines.collect::<Vec<_>>());
    (table, goals.iter().all(Goal::is_kept))
}

/// A Markdown table whose columns line up.
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        for (column, (cell, &width)) in cells.zip(&widths).enumerate() {
            // The first column is words, the others are mostly numbers.
            // INVARIANT: writing to a string does not fail.
            let _ = if column == 0 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text.push_str("|\n");
    };
    line(&mut head.iter().copied());
    let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    line(&mut rules.iter().map(String::as_str));
    rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
    text
}

/// Writes one JSON object per line; the file is replaced.
pub fn write_json(path: &Path, rows: &[impl Serialize]) -> Outcome {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut file = std::fs::File::create(path).map_err(|error| failed(&error))?;
    for row in rows {
        let line = serde_json::to_string(row).map_err(|error| failed(&error))?;
        writeln!(file, "{line}").map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// A bar with its label.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it stands for.
    pub label: String,
    /// Its group, which gives the colour.
    pub group: usize,
    /// Its length.
    pub value: f64,
}

/// Draws horizontal bars to `bench/reports/<name>.svg`; returns the path.
pub fn plot_bars(name: &str, title: &str, unit: &str, bars: &[Bar]) -> Outcome<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reports");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let path = folder.join(format!("{name}.svg"));
    draw_bars(&path, title, unit, bars).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn draw_bars(path: &Path, title: &str, unit: &str, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
    const ROW: u32 = 18;
    let height = 90 + ROW * bars.len() as u32;
    let area = SVGBackend::new(path, (900, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let longest = bars.iter().map(|bar| bar.value).fold(1.0, f64::max) * 1.1;
    let count = bars.len() as i32;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(8)
        .set_label_area_size(LabelAreaPosition::Left, 330)
        .set_label_area_size(LabelAreaPosition::Bottom, 36)
        .build_cartesian_2d(0.0..longest, (0..count).into_segmented())?;
    let label = |at: &SegmentValue<i32>| match at {
        SegmentValue::CenterOf(at) => {
            bars.get((count - 1 - at) as usize).map_or_else(String::new, |bar| bar.label.clone())
        }
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len())
        .y_label_formatter(&label)
        .x_desc(unit)
        .draw()?;
    chart.draw_series(bars.iter().zip((0..count).rev()).map(|(bar, at)| {
        let corners = [(0.0, SegmentValue::Exact(at)), (bar.value, SegmentValue::Exact(at + 1))];
        let mut bar = Rectangle::new(corners, Palette99::pick(bar.group).filled());
        bar.set_margin(3, 3, 0, 0);
        bar
    }))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_spread() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!((median(&[]), spread(&[]), spread(&[7.0])), (0.0, 0.0, 0.0));
        assert_eq!(spread(&[1.0, 2.0, 3.0]), 1.0);
    }

    #[test]
    fn a_table_lines_up() {
        let text = markdown(&["a", "bb"], &[vec!["long".into(), "1".into()]]);
        assert_eq!(text, "| a    | bb |\n| ---- | -- |\n| long |  1 |\n");
    }

    #[test]
    fn a_row_has_exactly_the_published_fields() {
        let value = serde_json::to_value(Row::default()).expect("plain values");
        let mut names: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        names.sort_unstable();
        let published = "bench flows frame_bytes mpps ns_per_packet peer peer_ns_per_packet pipeline port \
                         ratio rules runs spread";
        assert_eq!(names, published.split_whitespace().collect::<Vec<_>>());
    }
}
