//! Limits as a client feels them: how many requests are answered is what docs/throttle.md says, "The curve".

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent::report::Export;
use wire::nbd::transmission::{Command, CommandFlags};

use crate::client::Client;
use crate::host::{self, Reply, Sgl, Sqe};
use crate::nvme::Host;
use crate::place::{Place, memory};

/// Requests under way.
const DEPTH: usize = 32;
const BLOCK: usize = 4096;
/// Operations: what is saved up, per second.
const BANK: f64 = 600.0;
const FILL: f64 = 300.0;
const PEAK: f64 = 1500.0;
/// What the peak holds: 10 ms of it.
const PEAK_CAP: f64 = PEAK / 100.0;

/// Longest that it may take to make up for time that was lost on a busy machine.
const CATCH_UP: Duration = Duration::from_secs(20);

/// A client that always asks.
struct Asking {
    client: Client,
    under_way: usize,
    answers: f64,
}

impl Asking {
    fn new(place: &Place, export: &str) -> Asking {
        Asking { client: Client::unix(&place.socket(), export), under_way: 0, answers: 0.0 }
    }

    /// Asks until this instant. Returns the answers until then, and when the last one came.
    fn until(&mut self, end: Instant) -> (f64, Instant) {
        let mut block = [0; BLOCK];
        loop {
            while self.under_way < DEPTH {
                let read = (Command::READ, CommandFlags(0));
                self.client.send(read, 0, BLOCK as u32, &[]).expect("the daemon takes it");
                self.under_way += 1;
            }
            self.client.answer().expect("the daemon answers");
            self.client.payload(&mut block).expect("with the data");
            self.under_way -= 1;
            self.answers += 1.0;
            let now = Instant::now();
            if now >= end {
                return (self.answers, now);
            }
        }
    }
}

fn export(bank: u32, fill: u32) -> String {
    let limits = format!(
        "[export.operations]\nburst = {{ bank = {bank}, fill = {fill} }}\npeak = {PEAK}\n",
        PEAK = PEAK as u32
    );
    memory("limited", "64MiB", &limits)
}

/// What was answered by an instant is never more than the limits allow. It may be less when the client or the
/// daemon did not run for a while; but then the bank has saved that up, and soon it is within 2 % and one request.
fn compare(what: &str, asking: &mut Asking, before: f64, at: Instant, curve: impl Fn(Instant) -> (f64, f64)) {
    let mut end = at;
    loop {
        let (answers, now) = asking.until(end);
        let answers = answers - before;
        let (least, most) = curve(now);
        println!("{what}: {answers} answered, {least:.1} to {most:.1} expected");
        assert!(answers <= most + 1.0, "{what}: {answers} answered, at most {most} are allowed");
        if answers >= least * 0.98 - 1.0 {
            return;
        }
        assert!(now < at + CATCH_UP, "{what}: {answers} answered, {least} are due");
        end = now + Duration::from_millis(100);
    }
}

#[test]
fn a_limit_answers_what_its_curve_says_and_a_reload_keeps_the_balance() {
    let mut place = Place::new("serve-limits", &[&export(BANK as u32, FILL as u32)]);
    let mut asking = Asking::new(&place, "limited");
    // Nothing was asked before: everything is full.
    let began = Instant::now();
    for half_seconds in 1..=5 {
        let at = began + Duration::from_millis(500 * half_seconds);
        compare(&format!("half second {half_seconds}"), &mut asking, 0.0, at, |now| {
            let seconds = now.duration_since(began).as_secs_f64();
            let curve = (PEAK_CAP + PEAK * seconds).min(BANK + FILL * seconds);
            (curve, curve)
        });
    }
    // Twice the rate and twice the bank. What was in the bank stays there: nothing, and no new burst.
    let (before, changing) = (asking.answers, Instant::now());
    place.change(&[&export(2 * BANK as u32, 2 * FILL as u32)]);
    let changed = Instant::now();
    // Behind by at most 2 % until now, which the bank had.
    let saved = BANK + FILL * changing.duration_since(began).as_secs_f64() - before;
    compare("after a reload", &mut asking, before, changed + Duration::from_secs(1), |now| {
        let fill = |since| 2.0 * FILL * now.duration_since(since).as_secs_f64();
        (fill(changed), saved + fill(changing))
    });
    place.stop();
}

/// What ten exports of a group have read, and when that was looked at.
fn read(place: &Place) -> Vec<(u64, u64)> {
    let reads = |export: &Export| (export.counters["reads"], export.at_ns);
    place.daemon().stats().exports.iter().map(reads).collect()
}

#[test]
fn exports_of_a_group_share_its_pool() {
    const RATE: u64 = 1000;
    const LOOKED_AT: u64 = 2000;
    let group = |rate: u64| format!("[[group]]\nname = \"ten\"\noperations = {rate}\noperations_cap = 10\n");
    let names: Vec<String> = (0..10).map(|number| format!("disk{number}")).collect();
    let exports: Vec<String> = names.iter().map(|name| memory(name, "1MiB", "group = \"ten\"")).collect();
    let config = |rate| [group(rate), exports.concat()];
    let mut place = Place::new("serve-group", &config(RATE).each_ref().map(String::as_str));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in &names {
            let mut asking = Asking::new(&place, name);
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    asking.until(Instant::now());
                }
            });
        }
        let total = |place: &Place| read(place).iter().map(|(reads, _)| reads).sum::<u64>();
        // All are there, and what was saved is spent.
        place.daemon().until("all ask", || read(&place).iter().all(|(reads, _)| *reads > 20));
        let before = read(&place);
        let end = total(&place) + LOOKED_AT;
        place.daemon().until("they are served", || total(&place) >= end);
        let after = read(&place);
        let shares: Vec<u64> = before.iter().zip(&after).map(|(before, after)| after.0 - before.0).collect();
        let (sum, seconds) = (shares.iter().sum::<u64>(), (after[0].1 - before[0].1) as f64 / 1e9);
        println!("shares {shares:?} in {seconds:.3} s");
        assert!(sum as f64 <= RATE as f64 * seconds * 1.01 + 20.0, "{sum} operations in {seconds} s");
        for share in &shares {
            let mean = sum as f64 / 10.0;
            assert!((*share as f64 - mean).abs() <= mean * 0.05, "{shares:?}");
        }
        // A reload changes what they share, while they ask.
        let quick = config(RATE * 20);
        place.change(&quick.each_ref().map(String::as_str));
        let (before, from) = (read(&place), Instant::now());
        place.daemon().until("they are served faster", || {
            let more = total(&place) - before.iter().map(|(reads, _)| reads).sum::<u64>();
            more as f64 > 2.0 * RATE as f64 * from.elapsed().as_secs_f64() && more > RATE
        });
        stop.store(true, Ordering::Relaxed);
    });
    place.stop();
}

/// What waits at a limit is in its host's hands until it is begun.
#[test]
fn an_nvme_host_takes_back_what_waits_for_credits() {
    const SLOW: &str = "nqn.2026-11.com.example:slow";
    let export = memory("slow", "1MiB", &format!("nqn = \"{SLOW}\"\noperations = {{ rate = 1 }}"));
    let place = Place::new("serve-abort", &[&export]);
    let (mut admin, mut io) = Host::both(place.nvme, SLOW);
    const READS: u16 = 8;
    for id in 1..=READS {
        io.send(host::read(id, 0, 1).dword(8, 4096), &[]);
    }
    // From behind, so that the last one is the next, whose place in the queue for credits goes with it.
    let taken_back: Vec<u16> = (1..=READS)
        .rev()
        .filter(|id| {
            admin.send(Sqe::new(0x08, 60, 0, Sgl::Host(0)).dword(10, 1 | u32::from(*id) << 16), &[]);
            match admin.answer() {
                Ok((Reply::Done { id: 60, status: 0, result, .. }, _)) => result == 0,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    // Credits for all of them would take seconds to come.
    assert!(taken_back.len() >= 3, "{taken_back:?}");
    for _ in 0..READS {
        let (answer, data) = io.answer().expect("each is answered");
        let Reply::Done { id, status, .. } = answer else { panic!("{answer:?}") };
        let expected = if taken_back.contains(&id) { (0x007, 0) } else { (0, 4096) };
        assert_eq!((status, data.len()), expected, "{id} of {taken_back:?}");
    }
    place.daemon().until("nothing waits", || place.daemon().stats().exports[0].waiting == 0);
    assert_eq!(io.data(host::read(9, 0, 1).dword(8, 4096)), [0; 4096]);
    drop((admin, io));
    place.stop();
}
