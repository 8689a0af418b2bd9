//! `tidegate top`: nodes, volumes, operations and policies on one screen, refreshed.
//!
//! Lines are drawn over the frame before, on the terminal's alternate screen; `q` or Ctrl-C ends it. Without a
//! terminal, or with `--once`, one frame is printed whole.
//!
//! Invariant: whichever way it ends, the terminal is as it was ([`Screen`]).

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use contract::{Alarm, Live, LiveNode, Node, Operation, Status, Volume, VolumeReport};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use crate::ask::{Asker, Failure, print};
use crate::policy::list;
use crate::table::{Table, ago, bytes};

/// Volumes that are looked at; of more the first ones.
const VOLUMES_MAX: usize = 1_000;
/// The newest alarms, on top; `tidegate status` has all.
const ALARMS_MAX: usize = 3;
/// Between the two looks of a single frame, for its rates.
const GLANCE: Duration = Duration::from_millis(500);

/// Options of `tidegate top`.
#[derive(clap::Args)]
pub struct Args {
    /// Print one frame and end
    #[arg(long)]
    once: bool,
    /// Seconds between two frames
    #[arg(long, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "write seconds, like 0.5".to_owned())?;
    if (0.1..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("between 0.1 and 3600 s".to_owned()) }
}

/// What there was to see, at one instant.
struct Look {
    at: Instant,
    status: Status,
    nodes: Vec<Node>,
    volumes: Vec<Volume>,
    operations: Vec<Operation>,
    live: Live,
    policies: list::Status,
}

impl Look {
    async fn take(asker: &Asker) -> Result<Look, Failure> {
        Ok(Look {
            at: Instant::now(),
            status: asker.client.get("/v1/status").await?,
            nodes: asker.all("nodes", |node: &Node| node.id.0).await?,
            volumes: asker.some(&format!("volumes?limit={VOLUMES_MAX}")).await?,
            operations: asker.all("operations", |one: &Operation| one.id.0).await?,
            live: asker.client.get("/v1/live").await?,
            policies: asker.client.get("/v1/policies").await?,
        })
    }
}

/// Runs `tidegate top`.
pub async fn run(asker: &Asker, args: &Args) -> Result<(), Failure> {
    let mut before = Look::take(asker).await?;
    if args.once || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        tokio::time::sleep(GLANCE).await;
        return print(&frame(&before, &Look::take(asker).await?));
    }
    let failed = |error: &dyn std::fmt::Display| Failure::Other(format!("the terminal: {error}"));
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|error| failed(&error))?;
    }
    let screen = Screen::take().map_err(|error| failed(&error))?;
    let mut shown = String::new();
    loop {
        screen.draw(&shown).map_err(|error| failed(&error))?;
        let pause = if shown.is_empty() { GLANCE.as_secs_f64() } else { args.interval };
        if screen.key_within(Duration::from_secs_f64(pause), &stop).map_err(|error| failed(&error))? {
            return Ok(());
        }
        // A control plane that is away for a while comes back into sight.
        match Look::take(asker).await {
            Ok(now) => {
                shown = frame(&before, &now);
                before = now;
            }
            Err(why) => shown = format!("{why}\n\nq ends\n"),
        }
    }
}

/// Everything that there is to see.
fn frame(before: &Look, now: &Look) -> String {
    let &Status { start, nodes, volumes, operations_open, leases, .. } = &now.status;
    let seconds = (now.at - before.at).as_secs_f64().max(0.001);
    // A control plane that was started again counts from 0.
    let rate = |now: u64, before: u64| format!("{:.1}", now.saturating_sub(before) as f64 / seconds);
    let head = format!(
        "tidegate  start {start}  {nodes} nodes  {volumes} volumes  {leases} leases  {operations_open} operations open  \
         {} decisions/s  {} reports/s\n",
        rate(now.status.decisions, before.status.decisions),
        rate(now.status.reports, before.status.reports),
    );
    let alarms: String =
        now.status.alarms.iter().take(ALARMS_MAX).map(|alarm| told(alarm, host::wall_ms())).collect();
    let sections = [
        nodes_table(now).to_string(),
        policies_table(before, now, &rate).to_string(),
        operations_table(now),
        volumes_table(now).to_string(),
    ];
    format!("{head}{alarms}\n{}", sections.join("\n"))
}

/// An alarm in a line.
pub fn told(alarm: &Alarm, now_ms: u64) -> String {
    let times = if alarm.times > 1 { format!(", {} times", alarm.times) } else { String::new() };
    format!("alarm, {} ago{times}: {}\n", ago(alarm.at_ms, now_ms), alarm.what)
}

fn nodes_table(now: &Look) -> Table {
    let mut table =
        Table::new(&["NODE", "NAME", "STATE", "USED", "VOLUMES", "IOPS", "BYTES/s", "RUNS", "STEPS"]);
    for node in &now.nodes {
        let idle = LiveNode::default();
        let live = now.live.nodes.get(node.info.name.as_str());
        let does = live.unwrap_or(&idle);
        let sum = |of: fn(&VolumeReport) -> u64| does.volumes.iter().map(of).sum::<u64>();
        let cordoned = if node.cordoned { ", cordoned" } else { "" };
        table.row(vec![
            node.id.0.to_string(),
            node.info.name.to_string(),
            format!("{}{cordoned}", node.state),
            live.map_or("-".to_owned(), |live| format!("{:.1}%", f64::from(live.utilisation_ppm) / 1e4)),
            does.volumes.len().to_string(),
            sum(|volume| u64::from(volume.iops)).to_string(),
            bytes(sum(|volume| volume.bytes_per_s)),
            does.running.0.to_string(),
            does.steps.len().to_string(),
        ]);
    }
    table
}

fn policies_table(before: &Look, now: &Look, rate: &impl Fn(u64, u64) -> String) -> Table {
    let head = [
        "POLICY",
        "ACTIVE",
        "VERSION",
        "VERDICTS/s",
        "VERDICTS",
        "BY POLICY",
        "ABSTAINED",
        "FAULTS",
        "SHADOW",
    ];
    let mut table = Table::new(&head);
    for kind in &now.policies.kinds {
        let counters = &kind.counters;
        let last = before.policies.kinds.iter().find(|one| one.kind == kind.kind);
        let (name, version) =
            kind.active.as_ref().map_or(("native", "-"), |policy| (&policy.name, &policy.version));
        let back = if kind.rolled_back.is_some() { " (rolled back)" } else { "" };
        table.row(vec![
            kind.kind.clone(),
            format!("{name}{back}"),
            version.to_owned(),
            rate(counters.decisions, last.map_or(0, |last| last.counters.decisions)),
            counters.decisions.to_string(),
            counters.by_policy.to_string(),
            counters.abstained.to_string(),
            counters.faults.values().sum::<u64>().to_string(),
            kind.shadow.as_ref().map_or("-".to_owned(), |shadow| shadow.policy.name.clone()),
        ]);
    }
    table
}

fn operations_table(now: &Look) -> String {
    let mut table = Table::new(&["OPERATION", "KIND", "VOLUME", "STEP", "DONE", "HELD BY"]);
    let mut open = now.operations.iter().filter(|one| !one.phase.is_over()).peekable();
    if open.peek().is_none() {
        return "no operation is open\n".to_owned();
    }
    for one in open {
        let step = one.steps.get(usize::from(one.at)).map_or("-".to_owned(), ToString::to_string);
        let done = match one.progress.total_bytes {
            0 => "-".to_owned(),
            total => format!("{}%", one.progress.done_bytes.saturating_mul(100) / total),
        };
        let held = one.blocked_on.as_ref().map_or("-".to_owned(), ToString::to_string);
        table.row(vec![
            one.id.0.to_string(),
            one.work.kind().to_string(),
            one.volume.to_string(),
            step,
            done,
            held,
        ]);
    }
    table.to_string()
}

fn volumes_table(now: &Look) -> Table {
    let head =
        ["VOLUME", "NAME", "NODE", "SIZE", "IOPS", "BYTES/s", "P99 us", "CREDITS", "BYTE CREDITS", "ERRORS"];
    let mut table = Table::new(&head);
    let reports: BTreeMap<_, _> = now
        .live
        .nodes
        .values()
        .flat_map(|node| &node.volumes)
        .map(|report| ((report.volume, report.epoch), report))
        .collect();
    // What its head says, and not what an old one says.
    let report = |volume: &Volume| {
        let head = volume.head?;
        reports.get(&(volume.id, head.epoch)).copied()
    };
    let mut all: Vec<(&Volume, Option<&VolumeReport>)> =
        now.volumes.iter().map(|volume| (volume, report(volume))).collect();
    all.sort_by_key(|(volume, report)| {
        (std::cmp::Reverse(report.map_or(0, |report| report.iops)), volume.id)
    });
    for (volume, report) in all {
        let said = |of: &dyn Fn(&VolumeReport) -> String| report.map_or("-".to_owned(), of);
        table.row(vec![
            volume.id.0.to_string(),
            volume.name.to_string(),
            volume.head.map_or("-".to_owned(), |head| head.node.0.to_string()),
            bytes(volume.size_bytes),
            said(&|report| report.iops.to_string()),
            said(&|report| bytes(report.bytes_per_s)),
            said(&|report| report.p99_us.to_string()),
            said(&|report| report.credits.operations.to_string()),
            said(&|report| report.credits.bytes.to_string()),
            said(&|report| report.errors.to_string()),
        ]);
    }
    table
}

/// The terminal while we have it: alternate screen, no cursor, keys at once and not shown.
struct Screen {
    before: Termios,
}

impl Screen {
    fn take() -> std::io::Result<Screen> {
        let before = termios::tcgetattr(std::io::stdin())?;
        let mut ours = before.clone();
        // Ctrl-C stays a signal.
        ours.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        ours.special_codes[SpecialCodeIndex::VMIN] = 0;
        ours.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &ours)?;
        let screen = Screen { before };
        screen.write("\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn write(&self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Draws as much of a frame as there is room for.
    fn draw(&self, frame: &str) -> std::io::Result<()> {
        let size = termios::tcgetwinsize(std::io::stdout())?;
        // A terminal may not know its own size.
        let known = |size: u16, usual: usize| if size == 0 { usual } else { usize::from(size) };
        self.write(&drawn(frame, known(size.ws_col, 80), known(size.ws_row, 24)))
    }

    /// Waits for a key or a signal that ends it; false when the time is over.
    fn key_within(&self, patience: Duration, stop: &AtomicBool) -> std::io::Result<bool> {
        let until = Instant::now() + patience;
        while !stop.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            let stdin = std::io::stdin();
            let mut waits = [PollFd::new(&stdin, PollFlags::IN)];
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match rustix::event::poll(&mut waits, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => {
                    let mut keys = [0; 64];
                    let count = rustix::io::read(&stdin, &mut keys)?;
                    // None although there should be: the terminal is gone.
                    if count == 0 || keys[..count].iter().any(|key| matches!(key, b'q' | b'Q')) {
                        return Ok(true);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = self.write("\x1b[?25h\x1b[?1049l");
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// A frame as the terminal is told it: cut to `columns` and `rows`, each line and the rest of the screen cleared.
fn drawn(frame: &str, columns: usize, rows: usize) -> String {
    let mut out = "\x1b[H".to_owned();
    let lines: Vec<String> =
        frame.lines().take(rows).map(|line| line.chars().take(columns).collect()).collect();
    out += &lines.iter().map(|line| format!("{line}\x1b[K")).collect::<Vec<_>>().join("\r\n");
    out + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_to_the_terminal() {
        assert_eq!(drawn("abc\nde\nf\n", 2, 2), "\x1b[Hab\x1b[K\r\nde\x1b[K\x1b[J");
        assert_eq!(drawn("", 80, 24), "\x1b[H\x1b[J");
    }

    #[test]
    fn an_alarm_says_when_and_how_often_it_came() {
        let alarm = |times| Alarm { at_ms: 0, times, what: "node/1 is lost".to_owned() };
        assert_eq!(told(&alarm(1), 5_000), "alarm, 5 s ago: node/1 is lost\n");
        assert_eq!(told(&alarm(9), 61_000), "alarm, 1 min ago, 9 times: node/1 is lost\n");
    }

    #[test]
    fn intervals_have_a_range() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "x", "NaN", "4000"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
