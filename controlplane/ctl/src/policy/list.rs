//! `tidegate policy list`: what decides, what is asked beside it, what is ready, and what happened.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::table::{Table, ago};

/// Events that are shown; the API has more.
const EVENTS_MAX: usize = 10;
/// Differences that are shown of each shadow.
const DIFFERENCES_MAX: usize = 5;

/// What `GET /v1/policies` answers, as far as it is shown.
#[derive(Deserialize)]
pub struct Status {
    pub kinds: Vec<Kind>,
    library: Vec<Policy>,
    events: Vec<Event>,
    log_errors: u64,
    log_last_error: Option<String>,
}

#[derive(Deserialize)]
pub struct Kind {
    pub kind: String,
    pub active: Option<Policy>,
    pub shadow: Option<Shadow>,
    pub counters: Counters,
    pub rolled_back: Option<String>,
}

#[derive(Deserialize)]
pub struct Policy {
    pub name: String,
    pub version: String,
    pub kind: String,
    digest: String,
    config: BTreeMap<String, String>,
    config_digest: String,
    summary: String,
}

#[derive(Deserialize)]
pub struct Counters {
    pub decisions: u64,
    pub by_policy: u64,
    pub abstained: u64,
    pub faults: BTreeMap<String, u64>,
    activations: u64,
    rollbacks: u64,
}

#[derive(Deserialize)]
pub struct Shadow {
    pub policy: Policy,
    comparison: Comparison,
}

#[derive(Deserialize)]
struct Comparison {
    decisions: u64,
    same: u64,
    different: u64,
    abstained: u64,
    faults: u64,
    fuel: u64,
    active_fuel: u64,
    ns: u64,
    ns_max: u64,
    active_ns: u64,
    stopped: bool,
    differences: Vec<Difference>,
}

#[derive(Deserialize)]
struct Difference {
    decision: u64,
    function: String,
    active: String,
    shadow: String,
}

#[derive(Deserialize)]
struct Event {
    at_ms: u64,
    kind: String,
    what: String,
}

/// All of it for people; `now_ms` is the wall clock.
pub fn shown(status: &serde_json::Value, now_ms: u64) -> Result<String, String> {
    let status = Status::deserialize(status).map_err(|error| {
        format!("the list makes no sense: {error}; is the control plane of another version?")
    })?;
    let mut sections = vec![kinds(&status.kinds)];
    if status.kinds.iter().any(|kind| kind.shadow.is_some()) {
        sections.push(shadows(&status.kinds));
    }
    sections.push(library(&status.library));
    sections.push(events(&status.events, now_ms));
    if let Some(why) = status.log_last_error {
        sections.push(format!(
            "{} decisions or events could not be logged, the last one: {why}\n",
            status.log_errors
        ));
    }
    Ok(sections.join("\n"))
}

fn named(policy: &Policy) -> String {
    format!("{} {}", policy.name, policy.version)
}

/// A number, and which share of all it is.
fn share(part: u64, all: u64) -> String {
    // Of nothing there are no shares.
    let percent = part.saturating_mul(100).checked_div(all);
    percent.map_or_else(|| part.to_string(), |percent| format!("{part} ({percent}%)"))
}

fn kinds(kinds: &[Kind]) -> String {
    let mut table = Table::new(&[
        "KIND",
        "ACTIVE",
        "DECISIONS",
        "BY POLICY",
        "ABSTAINED",
        "FAULTS",
        "ACTIVATIONS",
        "ROLLBACKS",
    ]);
    let mut why = String::new();
    for kind in kinds {
        let Counters { decisions, by_policy, abstained, .. } = kind.counters;
        let faults: u64 = kind.counters.faults.values().sum();
        table.row(vec![
            kind.kind.clone(),
            kind.active.as_ref().map_or("native".to_owned(), named),
            decisions.to_string(),
            share(by_policy, decisions),
            share(abstained, decisions),
            share(faults, decisions),
            kind.counters.activations.to_string(),
            kind.counters.rollbacks.to_string(),
        ]);
        if faults > 0 {
            let each = kind.counters.faults.iter().map(|(class, count)| format!("{count} {class}"));
            why += &format!("{}: faults: {}\n", kind.kind, each.collect::<Vec<_>>().join(", "));
        }
        if let Some(back) = &kind.rolled_back {
            why += &format!("{}: {back}\n", kind.kind);
        }
    }
    format!("{table}{why}")
}

fn shadows(kinds: &[Kind]) -> String {
    let mut table = Table::new(&[
        "SHADOW",
        "POLICY",
        "ASKED",
        "SAME",
        "DIFFERENT",
        "ABSTAINED",
        "FAULTS",
        "us",
        "ACTIVE us",
        "MAX us",
        "FUEL",
        "ACTIVE FUEL",
    ]);
    let mut more = String::new();
    for kind in kinds {
        let Some(Shadow { policy, comparison: all }) = &kind.shadow else { continue };
        // Of one decision.
        let mean = |sum: u64| sum.checked_div(all.decisions).unwrap_or(0);
        let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
        table.row(vec![
            kind.kind.clone(),
            named(policy),
            all.decisions.to_string(),
            share(all.same, all.decisions),
            share(all.different, all.decisions),
            share(all.abstained, all.decisions),
            share(all.faults, all.decisions),
            us(mean(all.ns)),
            us(mean(all.active_ns)),
            us(all.ns_max),
            mean(all.fuel).to_string(),
            mean(all.active_fuel).to_string(),
        ]);
        if all.stopped {
            more += &format!("{}: the shadow failed too often and is not asked any more\n", kind.kind);
        }
        for one in all.differences.iter().take(DIFFERENCES_MAX) {
            let Difference { decision, function, active, shadow } = one;
            more +=
                &format!("{} {decision} {function}: decided: {active}; the shadow: {shadow}\n", kind.kind);
        }
    }
    format!("{table}{more}")
}

impl Policy {
    /// What tells it from all others, as other verbs take it.
    fn digits(&self) -> String {
        let short = |digits: &str| digits.chars().take(12).collect::<String>();
        let code = short(&self.digest);
        if self.config.is_empty() { code } else { format!("{code}-{}", short(&self.config_digest)) }
    }
}

fn library(library: &[Policy]) -> String {
    let mut table = Table::new(&["READY", "VERSION", "KIND", "DIGEST", "SUMMARY"]);
    for policy in library {
        table.row(vec![
            policy.name.clone(),
            policy.version.clone(),
            policy.kind.clone(),
            policy.digits(),
            policy.summary.clone(),
        ]);
    }
    table.to_string()
}

fn events(events: &[Event], now_ms: u64) -> String {
    let mut table = Table::new(&["AGO", "KIND", "WHAT"]);
    for event in &events[events.len().saturating_sub(EVENTS_MAX)..] {
        table.row(vec![ago(event.at_ms, now_ms), event.kind.clone(), event.what.clone()]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn why_it_was_rolled_back_what_the_shadow_does_and_what_happened_are_shown() {
        let policy = |name: &str| {
            json!({ "name": name, "version": "0.2.0", "kind": "leasing", "digest": "0123456789abcdef",
                    "config": { "fill": "9" }, "config_digest": "fedcba9876543210", "summary": "As few as will do." })
        };
        let events: Vec<_> = (0..12)
            .map(|at| json!({ "at_ms": at * 1_000, "kind": "leasing", "what": format!("event-{at}") }))
            .collect();
        let status = json!({
            "kinds": [{
                "kind": "leasing", "active": null, "running": [], "previous": [],
                "shadow": { "policy": policy("pack"), "comparison": {
                    "decisions": 8, "same": 6, "different": 2, "abstained": 0, "faults": 0, "fuel": 800,
                    "active_fuel": 80, "ns": 16_000, "ns_max": 9_000, "active_ns": 8_000, "stopped": true,
                    "differences": [{ "decision": 7, "function": "pick-victims", "active": "A", "shadow": "B" }],
                } },
                "counters": { "decisions": 40, "by_policy": 30, "abstained": 5, "faults": { "trap": 5 },
                              "activations": 1, "rollbacks": 1 },
                "rolled_back": "mine 0.1.0 (0123) is rolled back to native: 5 faults within 100 decisions",
            }],
            "library": [policy("pack")], "events": events, "log_errors": 2, "log_last_error": "no room",
        });
        let text = shown(&status, 71_000).expect("it is read");
        for words in [
            &["leasing", "native", "40", "30 (75%)", "5 (12%)"][..],
            &["leasing: faults: 5 trap"],
            &["leasing: mine 0.1.0 (0123) is rolled back to native: 5 faults within 100 decisions"],
            &["leasing", "pack 0.2.0", "6 (75%)", "2 (25%)", "2.0", "1.0", "9.0", "100", "10"],
            &["not asked any more"],
            &["pack", "0123456789ab-fedcba987654", "As few as will do."],
            &["7 pick-victims: decided: A; the shadow: B"],
            &["1 min", "leasing", "event-11"],
            &["2 decisions or events could not be logged", "no room"],
        ] {
            assert!(
                text.lines().any(|line| words.iter().all(|word| line.contains(word))),
                "{words:?}:\n{text}"
            );
        }
        assert!(text.contains("event-2\n") && !text.contains("event-1\n"), "{text}");
        assert!(shown(&json!({}), 0).is_err_and(|why| why.contains("another version")));
    }
}
