//! The report as Prometheus text (OpenMetrics 1.0). Counters end in `_total`; units come last.

use engine::frame::DropReason;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::report::Report;

/// Media type of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Writes a report. Volumes are labelled by name, as many as the report has.
pub fn text(report: &Report) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("tidegate_dataplane");
    let version: Gauge = Gauge::default();
    version.set(i64::try_from(report.version).unwrap_or(i64::MAX));
    registry.register("snapshot_version", "Snapshot that all workers run", version);
    let volumes_total: Gauge = Gauge::default();
    volumes_total.set(i64::try_from(report.volumes_total).unwrap_or(i64::MAX));
    registry.register("volumes", "Volumes configured; the first 1000 by name are shown", volumes_total);
    workers(&mut registry, report);
    ports(&mut registry, report);
    volumes(&mut registry, report);
    exports(&mut registry, report);
    latencies(&mut registry, report);
    traces(&mut registry, report);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, Counter> {
    let family = Family::default();
    registry.register(name, help, Family::clone(&family));
    family
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, Gauge> {
    let family = Family::default();
    registry.register(name, help, Family::clone(&family));
    family
}

fn workers(registry: &mut Registry, report: &Report) {
    let frames = counter(registry, "frames", "Frames by what became of them");
    let held = gauge(registry, "frames_held", "Frames parked or in flight now");
    let drops = counter(registry, "drops", "Frames dropped, by reason");
    let stages = counter(registry, "stage_frames", "Frames by stage");
    let sleeps = counter(registry, "idle_events", "Sleeps, wake-ups and their like");
    let time: Family<Labels, Counter<f64, std::sync::atomic::AtomicU64>> = Family::default();
    registry.register_with_unit("time", "Where a worker's time goes", Unit::Seconds, Family::clone(&time));
    for (number, worker) in report.workers.iter().enumerate() {
        let label =
            |key: &'static str, value: &str| vec![("worker", number.to_string()), (key, value.to_owned())];
        for (what, count) in &worker.frames {
            match what.as_str() {
                "parked" | "in_flight" => {
                    held.get_or_create(&label("state", what)).set(i64::try_from(*count).unwrap_or(i64::MAX));
                }
                _ => {
                    frames.get_or_create(&label("event", what)).inc_by(*count);
                }
            }
        }
        // All of them: a rate needs the zero before the first.
        for reason in DropReason::ALL {
            let count = worker.drops.get(reason.name()).copied().unwrap_or(0);
            drops.get_or_create(&label("reason", reason.name())).inc_by(count);
        }
        for (stage, count) in &worker.stages {
            stages.get_or_create(&label("stage", stage)).inc_by(*count);
        }
        for (what, count) in &worker.time {
            match what.strip_suffix("_ns") {
                Some(state) => {
                    time.get_or_create(&label("state", state)).inc_by(*count as f64 / 1e9);
                }
                None => {
                    sleeps.get_or_create(&label("event", what)).inc_by(*count);
                }
            }
        }
    }
}

fn ports(registry: &mut Registry, report: &Report) {
    let up = gauge(registry, "port_up", "1 while the port is open");
    let held = gauge(registry, "port_held_frames", "Frames that a port holds back now");
    let counts = counter(registry, "port_events", "Frames, bytes, errors of a port");
    for port in &report.ports {
        let name = port.name.clone();
        up.get_or_create(&vec![("port", name.clone())]).set(i64::from(port.state == "up"));
        for (what, count) in &port.counters {
            if what == "held" {
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                held.get_or_create(&vec![("port", name.clone())]).set(count);
                continue;
            }
            counts.get_or_create(&vec![("port", name.clone()), ("event", what.clone())]).inc_by(*count);
        }
    }
}

fn volumes(registry: &mut Registry, report: &Report) {
    let bytes = counter(registry, "volume_admitted_bytes", "Bytes admitted");
    let packets = counter(registry, "volume_admitted_packets", "Packets admitted");
    let events = counter(registry, "volume_events", "Frames parked, marked and dropped");
    let parked = gauge(registry, "volume_parked_frames", "Frames waiting now");
    let credits = gauge(registry, "volume_burst_credits", "Credits in the bank");
    for volume in &report.volumes {
        let own = vec![("volume", volume.name.clone())];
        bytes.get_or_create(&own).inc_by(volume.admitted_bytes);
        packets.get_or_create(&own).inc_by(volume.admitted_packets);
        parked.get_or_create(&own).set(i64::from(volume.parked_frames));
        for (event, count) in
            [("parked", volume.parked_total), ("marked", volume.marked), ("dropped", volume.dropped)]
        {
            events
                .get_or_create(&vec![("volume", volume.name.clone()), ("event", event.to_owned())])
                .inc_by(count);
        }
        for (unit, balance) in [("bytes", volume.bytes), ("packets", volume.packets)] {
            if let Some(level) = balance.burst_level {
                credits
                    .get_or_create(&vec![("volume", volume.name.clone()), ("unit", unit.to_owned())])
                    .set(level);
            }
        }
    }
}

fn exports(registry: &mut Registry, report: &Report) {
    let events = counter(
        registry,
        "export_events",
        "Reads, writes, flushes, discards, bytes, errors and refused connections",
    );
    let waited = counter(registry, "export_waited", "Commands that had to wait for credits");
    let time: Family<Labels, Counter<f64, std::sync::atomic::AtomicU64>> = Family::default();
    let help = "Sum of the waits for credits";
    registry.register_with_unit("export_waited_time", help, Unit::Seconds, Family::clone(&time));
    let up = gauge(registry, "export_up", "1 if it is served, 0 if it should be and cannot be opened");
    for left_out in &report.left_out {
        up.get_or_create(&vec![("export", left_out.name.clone())]).set(0);
    }
    let connections = gauge(registry, "export_connections", "Connections now");
    let waiting = gauge(registry, "export_waiting", "Commands waiting for credits now");
    let credits = gauge(registry, "export_burst_credits", "Credits in the bank");
    for export in &report.exports {
        let own = vec![("export", export.name.clone())];
        up.get_or_create(&own).set(1);
        waited.get_or_create(&own).inc_by(export.waited_total);
        time.get_or_create(&own).inc_by(export.waited_ns as f64 / 1e9);
        connections.get_or_create(&own).set(i64::from(export.connections));
        waiting.get_or_create(&own).set(i64::from(export.waiting));
        for (event, count) in &export.counters {
            events
                .get_or_create(&vec![("export", export.name.clone()), ("event", event.clone())])
                .inc_by(*count);
        }
        for (unit, balance) in [("bytes", export.bytes), ("operations", export.operations)] {
            if let Some(level) = balance.burst_level {
                credits
                    .get_or_create(&vec![("export", export.name.clone()), ("unit", unit.to_owned())])
                    .set(level);
            }
        }
    }
}

/// Quantiles over the last windows, by kind of request and by stage.
fn latencies(registry: &mut Registry, report: &Report) {
    type Seconds = Family<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>;
    let mut family = |name: &str, help: &str| -> Seconds {
        let family = Family::default();
        registry.register_with_unit(name, help, Unit::Seconds, Family::clone(&family));
        family
    };
    let whole = family("export_latency", "Time from a request to its answer, of requests that were followed");
    let stages = family("export_stage_latency", "The same by stage, of requests that had it");
    for export in &report.exports {
        let Some(latency) = &export.latency else { continue };
        for (family, key, all) in [(&whole, "kind", &latency.kinds), (&stages, "stage", &latency.stages)] {
            for (name, quantiles) in all {
                for (quantile, ns) in [("0.5", quantiles.p50_ns), ("0.99", quantiles.p99_ns)] {
                    let label = [("export", export.name.clone()), (key, name.clone())];
                    let labels = label.into_iter().chain([("quantile", quantile.to_owned())]).collect();
                    family.get_or_create(&labels).set(ns as f64 / 1e9);
                }
            }
        }
    }
}

fn traces(registry: &mut Registry, report: &Report) {
    let help =
        "Requests followed, of these incomplete ones and outliers, suppressed outliers, and records lost";
    let events = counter(registry, "trace_events", help);
    let seen = &report.traces;
    for (event, count) in [
        ("traces", seen.traces),
        ("incomplete", seen.incomplete),
        ("outliers", seen.outliers),
        ("suppressed", seen.suppressed),
        ("lost", seen.lost),
    ] {
        events.get_or_create(&vec![("event", event.to_owned())]).inc_by(count);
    }
}
