//! A volume that stays inside its limit beside one that asks for all that it can get.
//!
//! In full only: latencies are the machine's as much as ours. So one round measures the neighbour alone, beside the noisy
//! volume while that spends its bank, and beside the same when it is held to its rate; medians of several rounds are
//! compared (decision D17).

use std::process::{Command, Stdio};
use std::time::Duration;

use tests::gateway::{full_or_skip, median};
use tests::netns::{Held, client, skip};

use crate::place::{Place, memory};

const TEST: &str = "a_neighbour_keeps_its_latency_beside_a_volume_that_bursts";
const ROUNDS: usize = 7;
/// The worker has a processor, and both clients have the other one: else what is compared is how Linux shares them.
const WORKER: &str = "[[worker]]\ncpu = 1\n";
const CLIENTS: &[&str] = &["-c", "0", "fio"];
/// Operations: 4.4 s of bursting.
const BANK: i64 = 12_000;

/// Something for each processor to do whenever it has nothing to do, at the lowest priority that there is: a virtual
/// processor that halts comes back when its host likes, and latencies would be the host's.
fn keep_processors_awake() -> Vec<Held> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let spin = |_| {
        let words = ["--pdeathsig", "KILL", "--", "chrt", "--idle", "0", "sh", "-c", "while :; do :; done"];
        Held(Command::new("setpriv").args(words).spawn().expect("util-linux is there"))
    };
    (0..processors).map(spin).collect()
}

/// Reads of the neighbour, 500 per second where 2,000 are allowed. Their 50th and 99th percentile, us.
fn neighbour(place: &Place) -> Option<[f64; 2]> {
    let uri = format!("--uri={}", place.unix("neighbour"));
    let words = ["--name=x", "--ioengine=nbd", "--rw=randread", "--bs=4k", "--iodepth=1", "--size=64M"];
    let more = ["--rate_iops=500", "--time_based", "--runtime=3", "--output-format=json", &uri];
    let text = client(TEST, "taskset", &[CLIENTS, &words[..], &more[..]].concat())?;
    let json: serde_json::Value =
        serde_json::from_str(&text[text.find('{')?..]).unwrap_or_else(|error| panic!("{error}: {text}"));
    let percentile = &json["jobs"][0]["read"]["clat_ns"]["percentile"];
    let us = |key: &str| percentile[key].as_f64().expect("fio has percentiles") / 1e3;
    Some([us("50.000000"), us("99.000000")])
}

/// Reads of the noisy volume, 32 at a time, until it is dropped.
fn noise(place: &Place) -> Held {
    let uri = format!("--uri={}", place.unix("noisy"));
    let words = ["--name=x", "--ioengine=nbd", "--rw=randread", "--bs=4k"];
    let more = ["--iodepth=32", "--size=64M", "--time_based", "--runtime=60", &uri];
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "taskset"]).args(CLIENTS).args(words).args(more);
    // It is ended in the middle of what it does, and complains.
    let command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Held(command.expect("util-linux is there"))
}

fn bank(place: &Place) -> i64 {
    let report = place.daemon().stats();
    let noisy = report.exports.iter().find(|export| export.name == "noisy").expect("it is exported");
    noisy.operations.burst_level.expect("it has a bank")
}

#[test]
fn a_neighbour_keeps_its_latency_beside_a_volume_that_bursts() {
    if !full_or_skip(TEST) {
        return;
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return skip(TEST, "it needs two processors");
    }
    if Command::new("fio").arg("--version").output().is_err() {
        return skip(TEST, "`fio` is not installed");
    }
    let limits = format!("operations = {{ burst = {{ bank = {BANK}, fill = 300 }}, peak = 3000 }}");
    let exports = [
        WORKER.to_owned(),
        memory("noisy", "64MiB", &limits),
        memory("neighbour", "64MiB", "operations = { rate = 2000 }"),
    ];
    let _awake = keep_processors_awake();
    let mut figures: [Vec<[f64; 2]>; 3] = Default::default();
    println!("| alone p50 p99 us | beside a burst | beside one that is held |\n|---|---|---|");
    for _ in 0..ROUNDS {
        let place = Place::new("serve-neighbour", &exports.each_ref().map(String::as_str));
        let Some(alone) = neighbour(&place) else { return place.stop() };
        let noise = noise(&place);
        place.daemon().until("it bursts", || bank(&place) < BANK * 95 / 100);
        let burst = neighbour(&place).expect("it is installed");
        assert!(bank(&place) > 300, "it burst all the time");
        place.daemon().until("it is held", || bank(&place) < 10);
        let held = neighbour(&place).expect("it is installed");
        assert!(bank(&place) < 300 && !noise.ends_within(Duration::ZERO), "it was held all the time");
        println!("| {alone:.1?} | {burst:.1?} | {held:.1?} |");
        for (all, one) in figures.iter_mut().zip([alone, burst, held]) {
            all.push(one);
        }
        drop(noise);
        place.stop();
    }
    let [alone, burst, held] =
        figures.map(|all| [0, 1].map(|which| median(&all.iter().map(|one| one[which]).collect::<Vec<_>>())));
    println!(
        "medians: alone {alone:.1?} us, beside a burst {burst:.1?} us, beside one that is held {held:.1?} us"
    );
    println!("p99: held / alone {:.3}, burst / held {:.3}", held[1] / alone[1], burst[1] / held[1]);
    assert!(burst[1] <= 1.2 * held[1], "{burst:?} us beside a burst, {held:?} us beside one that is held");
}
