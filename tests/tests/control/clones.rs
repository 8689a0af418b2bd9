//! Clones of volumes that hosts go on writing, as programs find them that we did not write.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::netns::client;
use tests::random::Random;

use crate::cluster::Cluster;

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;
/// Those that write meanwhile, each with a connection and pages of its own.
const WRITERS: u64 = 4;
const PAGES: u64 = 1024;
/// Where their pages begin: what is before is copied in at first.
const WRITTEN: u64 = 64 * MIB;
/// Size of the volumes.
const SIZE: u64 = 256 * MIB;

/// A write that was answered, and when it was under way.
struct Write {
    page: u64,
    sequence: u64,
    began: Instant,
    ended: Instant,
}

/// What a page holds after a write: its place and which write, in every word.
fn content(page: u64, sequence: u64) -> Vec<u8> {
    (page << 40 | sequence).to_le_bytes().repeat(PAGE / 8)
}

/// The write whose content a page holds, wholly; 0 = none.
fn sequence_of(page: u64, bytes: &[u8]) -> u64 {
    let word = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    let sequence = word & ((1 << 40) - 1);
    let whole =
        if word == 0 { bytes.iter().all(|byte| *byte == 0) } else { bytes == content(page, sequence) };
    assert!(whole, "page {page} holds parts of writes, or another page");
    sequence
}

/// Writes the pages of one writer at random until it is told to stop; all that it wrote, in order.
fn write(cluster: &Cluster, writer: u64, sequences: &AtomicU64, stop: &AtomicBool) -> Vec<Write> {
    let mut client = cluster.client(0, "disk").expect("it is served");
    let seed = sequences.load(Ordering::Relaxed) * WRITERS + writer;
    let (mut random, mut writes) = (Random::new(seed), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let page = writer * PAGES + random.below(PAGES);
        let (sequence, began) = (sequences.fetch_add(1, Ordering::Relaxed) + 1, Instant::now());
        client.write(WRITTEN + page * PAGE as u64, &content(page, sequence)).expect("it is answered");
        writes.push(Write { page, sequence, began, ended: Instant::now() });
    }
    writes
}

/// Ends writers, also when what is done meanwhile fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something while all write; their writes, and what it led to. `sequences` counts the writes of a whole test, so that
/// none is taken for an earlier one.
fn under_writes<T>(cluster: &Cluster, sequences: &AtomicU64, act: impl FnOnce() -> T) -> (Vec<Write>, T) {
    let stop = &AtomicBool::new(false);
    let more = |what: &str| {
        let now = sequences.load(Ordering::Relaxed);
        cluster.until(what, |_| sequences.load(Ordering::Relaxed) > now + 200);
    };
    std::thread::scope(|scope| {
        let ends = Ends(stop);
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(cluster, writer, sequences, stop))).collect();
        more("all write");
        let outcome = act();
        more("writes go on");
        drop(ends);
        let writes = writers.into_iter().flat_map(|writer| writer.join().expect("all are answered"));
        (writes.collect(), outcome)
    })
}

/// Longest time in which a writer had no answer.
fn longest_gap(writes: &[Write]) -> Duration {
    writes.iter().map(|write| write.ended - write.began).max().unwrap_or_default()
}

/// Checks that `image` is the volume as it was at one moment between the two: no write is there that began after one
/// ended that is not there. Returns how many writes are not there.
fn is_one_moment(image: &[u8], writes: &[Write], asked: Instant, served: Instant) -> usize {
    let held: Vec<u64> = (0..WRITERS * PAGES)
        .map(|page| {
            let at = (WRITTEN + page * PAGE as u64) as usize;
            sequence_of(page, &image[at..at + PAGE])
        })
        .collect();
    let is_held = |write: &&Write| held[write.page as usize] == write.sequence;
    let last = writes.iter().filter(is_held).map(|write| write.began).max().expect("some were there");
    assert!(last < served, "a write is there that began when the clone was served");
    let moment = last.max(asked);
    for write in writes.iter().filter(|write| write.ended < moment) {
        let held = held[write.page as usize];
        assert!(held >= write.sequence, "page {}: {held} and not {}", write.page, write.sequence);
    }
    writes.iter().filter(|write| held[write.page as usize] < write.sequence).count()
}

/// The data plane that serves a volume.
fn head(cluster: &Cluster, volume: &str) -> usize {
    let attach = cluster.tidegate(&["volume", "attach", volume]);
    let paths = attach["paths"].as_array().expect("its paths");
    let active = paths.iter().find(|path| path["active"] == true).expect("one serves it");
    cluster.names.iter().position(|name| active["node"] == name.as_str()).expect("it is ours")
}

/// Where stock clients reach a volume.
fn uri(cluster: &Cluster, volume: &str) -> String {
    format!("nbd+unix:///{volume}?socket={}", cluster.nbd(head(cluster, volume)).display())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}

/// Copies a volume out with nbdcopy.
fn image(test: &str, cluster: &Cluster, volume: &str) -> Option<Vec<u8>> {
    let path = cluster.folder.join(format!("{volume}.image"));
    client(test, "nbdcopy", &[&uri(cluster, volume), text(&path)])?;
    let image = std::fs::read(&path).expect("it was copied");
    assert_eq!(image.len() as u64, SIZE);
    std::fs::remove_file(path).expect("it can be removed");
    Some(image)
}

/// Random bytes with holes, copied into the volume with nbdcopy.
fn fill(test: &str, cluster: &Cluster) -> Option<Vec<u8>> {
    let (mut random, mut image) = (Random::new(0xc10e), vec![0; WRITTEN as usize]);
    for chunk in image.chunks_exact_mut(64 << 10).step_by(2) {
        chunk.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.any().to_le_bytes()));
    }
    let path = cluster.folder.join("source.image");
    std::fs::write(&path, &image).expect("an image can be written");
    client(test, "nbdcopy", &["--flush", text(&path), &uri(cluster, "disk")])?;
    Some(image)
}

/// Has fio write a volume at random and verify it.
fn use_it(test: &str, cluster: &Cluster, volume: &str) {
    let uri = format!("--uri={}", uri(cluster, volume));
    let job =
        ["--name=verify", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=16m"];
    let check = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--thread", "--verify_state_save=0"];
    client(test, "fio", &[&job[..], &check[..]].concat());
}

/// The operation that makes a clone, as it is now.
fn operation(cluster: &Cluster) -> Value {
    let operations = cluster.tidegate(&["operation", "list", "--all"]);
    let clones = operations.as_array().expect("a list").iter();
    let clones = clones.filter(|one| one["work"].to_string().contains("clone"));
    clones.max_by_key(|one| one["id"].as_u64()).cloned().unwrap_or_default()
}

#[test]
fn a_clone_is_its_source_at_one_moment_while_hosts_write_that() {
    const TEST: &str = "a_clone_is_its_source_at_one_moment_while_hosts_write_that";
    for cluster in [Cluster::private("clones", 2), Cluster::start("clones-shared", 2)] {
        cluster.volume("disk", "one");
        let Some(filled) = fill(TEST, &cluster) else { return };
        let sequences = AtomicU64::new(0);
        for round in 0..3 {
            let name = format!("copy-{round}");
            let (writes, [asked, served]) = under_writes(&cluster, &sequences, || {
                let asked = Instant::now();
                cluster.tidegate(&["volume", "clone", "disk", &name, "--wait"]);
                [asked, Instant::now()]
            });
            let copy = image(TEST, &cluster, &name).expect("nbdcopy is there");
            let without = is_one_moment(&copy, &writes, asked, served);
            let (count, gap) = (writes.len(), longest_gap(&writes));
            println!("{name}: {count} writes, {without} of them not in it; longest wait {gap:?}");
            assert!(without > 0, "writes went on after the moment");
            assert!(copy[..WRITTEN as usize] == filled, "what was not written is the same");
        }
        // A clone that nobody writes beside is its source, and each goes its own way.
        cluster.tidegate(&["volume", "clone", "disk", "still", "--wait"]);
        let (source, clone) = (image(TEST, &cluster, "disk"), image(TEST, &cluster, "still"));
        assert!(source == clone, "nothing was written beside it");
        use_it(TEST, &cluster, "still");
        assert!(image(TEST, &cluster, "disk") == source, "who writes the clone writes not its source");
        use_it(TEST, &cluster, "disk");
        let nqn = |volume| cluster.tidegate(&["volume", "attach", volume])["nqn"].clone();
        assert!(nqn("still").is_string() && nqn("still") != nqn("disk"), "to hosts it is another one");
    }
}

#[test]
fn hosts_wait_for_a_clone_no_longer_than_for_what_the_medium_needs() {
    const TEST: &str = "hosts_wait_for_a_clone_no_longer_than_for_what_the_medium_needs";
    // Copies are made at 10 MB/s, and more than that is written: what changed never becomes little.
    let cluster = Cluster::slow("clones-slow", 2);
    cluster.volume("disk", "one");
    if fill(TEST, &cluster).is_none() {
        return;
    }
    let (writes, [asked, served]) = under_writes(&cluster, &AtomicU64::new(0), || {
        let asked = Instant::now();
        cluster.tidegate(&["volume", "clone", "disk", "copy", "--wait"]);
        [asked, Instant::now()]
    });
    let copy = image(TEST, &cluster, "copy").expect("nbdcopy is there");
    is_one_moment(&copy, &writes, asked, served);
    let (gap, at_rate) =
        (longest_gap(&writes), Duration::from_secs_f64((WRITERS * PAGES) as f64 * 4096.0 / 1e7));
    println!(
        "{} writes in {:?}; longest wait {gap:?}, {at_rate:?} at the copy's rate",
        writes.len(),
        served - asked
    );
    assert!(gap < at_rate, "hosts wait for the rate of the copy");
}

#[test]
fn a_clone_whose_node_dies_in_the_middle_is_made_again_and_its_source_goes_on() {
    const TEST: &str = "a_clone_whose_node_dies_in_the_middle_is_made_again_and_its_source_goes_on";
    let mut cluster = Cluster::slow("clones-killed", 2);
    cluster.volume("disk", "one");
    let Some(filled) = fill(TEST, &cluster) else { return };
    cluster.tidegate(&["volume", "clone", "disk", "copy"]);
    cluster.until("the copy is under way", |cluster| {
        operation(cluster)["progress"]["done_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    cluster.kill_node(0);
    cluster.start_node(0);
    cluster.until("the clone is made or given up", |cluster| {
        ["done", "failed", "cancelled"].contains(&operation(cluster)["phase"].as_str().unwrap_or_default())
    });
    let phase = operation(&cluster)["phase"].clone();
    println!("the clone whose node died: {phase}");
    // It goes on, whatever came of its clone.
    cluster.client(0, "disk").expect("it is served").write(SIZE - MIB, &[7; PAGE]).expect("it is answered");
    let copy =
        image(TEST, &cluster, if phase == "done" { "copy" } else { "disk" }).expect("nbdcopy is there");
    assert!(copy[..WRITTEN as usize] == filled);
    assert_eq!(phase, "done", "{}{}", operation(&cluster), cluster.logs());
}
