//! Limits as a client feels them: how many requests are answered is what docs/throttle.md says, "The curve".

use std::time::{Duration, Instant};

use wire::nbd::transmission::{Command, CommandFlags};

use crate::client::Client;
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
    fn new(place: &Place) -> Asking {
        Asking { client: Client::unix(&place.socket(), "limited"), under_way: 0, answers: 0.0 }
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
    let mut asking = Asking::new(&place);
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
