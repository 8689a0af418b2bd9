//! Connections over socket pairs, volumes below them, and turns one by one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ::session::nbd::{Attach, Export, Limits as Bounds, Transmission};
use block::BlockSize;
use throttle::{DimLimits, Work};
use trace::Stage;

use super::*;

mod moving;
mod secured;

const BLOCKS: u64 = 1 << 16;
/// Places for connections: one volume gets half.
const CONNECTIONS: u32 = 128;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FUA: u16 = 1;
/// Turns after which a client that says and reads nothing must have been left to the wait point.
const QUIET_TURNS: usize = 200;

struct Bench {
    server: Server,
    wait: WaitPoint,
    reader: trace::Reader,
    now_ns: u64,
}

impl Bench {
    fn new(regions: u32, target: Target, limits: Limits) -> Bench {
        let slab = IoSlab::new(IoSlabConfig { regions, hugepages: false }).unwrap();
        let memory = IoSlabConfig { regions, hugepages: false };
        let wait = WaitPoint::new().unwrap();
        let plan =
            ServePlan { memory, connections_max: CONNECTIONS, trace_records: 1 << 12, has_files: false };
        let (writer, reader) = trace::ring(plan.trace_records);
        let moves = Moves::between(&[wait.waker()]).remove(0);
        let server = Server::new(&slab, &plan, Tracer::new(0, writer), moves, 1);
        let mut bench = Bench { server, wait, reader, now_ns: 1 };
        bench.add(target, &limits);
        bench
    }

    fn add(&mut self, target: Target, limits: &Limits) {
        let volume = target.volume();
        let files = Server::open_files(&target).unwrap();
        self.server.add(target, files, &mut self.wait).unwrap();
        self.server.set_limits(1, volume, limits);
    }

    fn connect(&mut self) -> UnixStream {
        self.connect_to(VolumeId(0))
    }

    fn connect_to(&mut self, volume: VolumeId) -> UnixStream {
        self.connect_as(guest(volume))
    }

    fn connect_as(&mut self, guest: Guest) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let arrival = Arrival { stream: theirs.into(), guest, rest: Vec::new() };
        self.server.connect(self.now_ns, arrival, &mut self.wait);
        ours
    }

    fn turn(&mut self) {
        self.now_ns += 1000;
        self.server.turn(&Stopwatch::still(self.now_ns), &mut self.wait).unwrap();
    }

    /// As a worker does: goes on while there is something to do, else waits for whatever announces more.
    fn turn_or_wait(&mut self) {
        self.turn();
        if !self.server.has_work() {
            self.wait.block(Some(100_000_000), || false).unwrap();
            self.server.ready(self.wait.ready());
        }
    }

    fn sleeps(&mut self) -> bool {
        (0..QUIET_TURNS).for_each(|_| self.turn());
        !self.server.has_work()
    }
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut octets = 0x2560_9513_u32.to_be_bytes().to_vec();
    octets.extend(flags.to_be_bytes());
    octets.extend(command.to_be_bytes());
    octets.extend(cookie.to_be_bytes());
    octets.extend(offset.to_be_bytes());
    octets.extend(length.to_be_bytes());
    octets
}

fn guest(volume: VolumeId) -> Guest {
    guest_that(volume, false)
}

/// A client, which may come to copy the volume.
fn guest_that(volume: VolumeId, changed: bool) -> Guest {
    let export = Export::new("disk", "", volume, BlockSize::B4096, BLOCKS).unwrap();
    let attach = Attach { export, structured: false, allocation: false, changed, secured: false };
    Guest::Nbd(Box::new(Transmission::new(attach, Bounds::default())))
}

fn null() -> Target {
    Target::null(VolumeId(0), BlockSize::B4096, BLOCKS)
}

#[test]
fn a_client_that_does_not_read_lets_the_worker_sleep_and_gets_everything_later() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut client = bench.connect();
    // More requests than a session has slots, and more answers than the socket holds.
    let (requests, bytes) = (300_u64, 64 << 10);
    let octets: Vec<u8> = (0..requests).flat_map(|cookie| request(READ, 0, cookie, 0, bytes)).collect();
    client.write_all(&octets).unwrap();
    assert!(bench.sleeps(), "nothing can be done before the client reads");
    let reader = std::thread::spawn(move || {
        let mut answer = vec![0; 16 + bytes as usize];
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (0..requests).all(|_| client.read_exact(&mut answer).is_ok() && answer[4..8] == [0; 4])
    });
    while !reader.is_finished() {
        bench.turn_or_wait();
    }
    assert!(reader.join().unwrap(), "every request is answered");
    assert!(bench.sleeps());
    bench.server.stop(bench.now_ns);
}

#[test]
fn what_a_copy_reads_is_no_load_of_its_hosts() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut host = bench.connect();
    let mut copy = bench.connect_as(guest_that(VolumeId(0), true));
    host.write_all(&request(READ, 0, 1, 0, 4096)).unwrap();
    copy.write_all(&request(READ, 0, 1, 0, 4096)).unwrap();
    (0..4).for_each(|_| bench.turn());
    assert!(is_answered(&mut host) && is_answered(&mut copy));
    let counters = bench.server.targets[0].as_ref().unwrap().counters();
    assert_eq!((counters.reads, counters.read_bytes, counters.copied_bytes), (1, 4096, 4096));
    bench.server.stop(bench.now_ns);
}

#[test]
fn many_connections_with_long_requests_wait_for_credits_without_keeping_the_worker_awake() {
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let mut bench = Bench::new(64, null(), Limits { packets: work, ..Limits::unlimited() });
    let mut clients: Vec<_> = (0..16).map(|_| bench.connect()).collect();
    for client in &mut clients {
        // 4 operations each.
        client.write_all(&request(READ, 0, 7, 0, 1 << 20)).unwrap();
    }
    assert!(bench.sleeps(), "all wait for credits");
    for client in &mut clients {
        client.set_nonblocking(true).unwrap();
    }
    let mut received = [0; 16];
    let mut scratch = vec![0; 1 << 20];
    for _ in 0..16 * 4 * 200 {
        bench.now_ns += 10_000_000;
        bench.turn();
        for (client, sum) in clients.iter_mut().zip(&mut received) {
            *sum += client.read(&mut scratch).unwrap_or(0);
        }
    }
    assert_eq!(received, [16 + (1 << 20); 16]);
    bench.server.stop(bench.now_ns);
}

#[test]
fn writes_that_wait_for_credits_leave_memory_to_others() {
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let mut bench = Bench::new(64, null(), Limits { packets: work, ..Limits::unlimited() });
    let mut clients: Vec<_> = (0..16).map(|_| bench.connect()).collect();
    let mut octets = request(WRITE, 0, 0, 0, 1 << 20);
    octets.resize(octets.len() + (1 << 20), 0);
    let (mut sent, mut quiet) = ([0; 16], 0);
    clients.iter().for_each(|client| client.set_nonblocking(true).unwrap());
    let mut send = || {
        let each = clients.iter_mut().zip(&mut sent);
        let sent = each.map(|(client, sent)| {
            let count = client.write(&octets[*sent % octets.len()..]).unwrap_or(0);
            *sent += count;
            count
        });
        sent.sum::<usize>() > 0
    };
    // As much as is taken.
    while quiet < QUIET_TURNS {
        quiet = if send() { 0 } else { quiet + 1 };
        bench.turn();
    }
    assert!(bench.sleeps());
    let held: usize = bench.server.connections.iter().flatten().map(|c| c.session.held_bytes()).sum();
    assert!((16 << 20..48 << 20).contains(&held), "{held}");
    // Long after a client that stalls would have been ended they are still there: it is us who do not read.
    for _ in 0..40 {
        bench.now_ns += EXPIRE_NS;
        (0..QUIET_TURNS).for_each(|_| {
            send();
            bench.turn();
        });
    }
    assert_eq!(bench.server.connections.iter().flatten().count(), 16);
    bench.server.stop(bench.now_ns);
}

#[test]
fn writes_that_take_all_memory_leave_the_volume_enough_to_end_them() {
    let path = std::env::temp_dir().join(format!("tidegate-memory-{}", std::process::id()));
    let _old = std::fs::remove_dir_all(&path);
    let place = volume::store::create(&path, BLOCKS << 12, BlockSize::B4096).unwrap();
    let (volume, _) = volume::open(&place, VolumeId(0), volume::Config::default()).unwrap();
    let mut bench = Bench::new(64, Target::thin(volume, path.clone()), Limits::unlimited());
    let writers: Vec<_> = (0..4_u64)
        .map(|number| {
            let mut client = bench.connect();
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            client.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
            std::thread::spawn(move || {
                let payload = vec![number as u8 + 1; 1 << 20];
                for cookie in 0..48 {
                    let offset = (number * 48 + cookie) << 20;
                    client.write_all(&request(WRITE, FUA, cookie, offset, 1 << 20)).unwrap();
                    client.write_all(&payload).unwrap();
                }
                let mut answer = [0; 16];
                (0..48).all(|_| client.read_exact(&mut answer).is_ok() && answer[4..8] == [0; 4])
            })
        })
        .collect();
    while writers.iter().any(|writer| !writer.is_finished()) {
        bench.now_ns = crate::clock::monotonic_ns();
        bench.turn_or_wait();
    }
    assert!(writers.into_iter().all(|writer| writer.join().unwrap()), "every write is answered");
    bench.server.stop(bench.now_ns);
    std::fs::remove_dir_all(&path).unwrap();
}

/// Whether a whole answer to one read of 4 KiB is there.
fn is_answered(client: &mut UnixStream) -> bool {
    client.set_nonblocking(true).unwrap();
    let mut answer = [0; 16 + 4096];
    client.read(&mut answer).is_ok_and(|count| count == answer.len())
}

#[test]
fn a_client_that_goes_takes_along_what_it_waited_for() {
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let mut bench = Bench::new(64, null(), Limits { packets: work, ..Limits::unlimited() });
    let mut clients: Vec<_> = (0..20).map(|_| bench.connect()).collect();
    for client in &mut clients {
        // 4 operations.
        client.write_all(&request(READ, 0, 7, 0, 1 << 20)).unwrap();
    }
    assert!(bench.sleeps());
    assert!(bench.server.shaper.parked().items >= 19);
    drop(clients);
    bench.server.ready(&(0..20).map(|index| FIRST_TOKEN + index).collect::<Vec<_>>());
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    assert_eq!((bench.server.shaper.parked().items, bench.server.free.len()), (0, 20));
    let mut client = bench.connect();
    client.write_all(&request(READ, 0, 7, 0, 4096)).unwrap();
    // What was let go before has to be earned, what was waited for has not.
    bench.now_ns += 10_000_000_000;
    bench.turn();
    bench.turn();
    assert!(is_answered(&mut client));
    bench.server.stop(bench.now_ns);
}

#[test]
fn clients_of_one_volume_that_do_not_read_leave_memory_to_another() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    bench.add(Target::null(VolumeId(1), BlockSize::B4096, BLOCKS), &Limits::unlimited());
    let mut greedy: Vec<_> = (0..16).map(|_| bench.connect()).collect();
    for client in &mut greedy {
        let octets: Vec<u8> = (0..64).flat_map(|cookie| request(READ, 0, cookie, 0, 1 << 20)).collect();
        client.write_all(&octets).unwrap();
    }
    assert!(bench.sleeps(), "those that lack memory do not keep the worker awake");
    let held = |bench: &Bench, volume: usize| bench.server.targets[volume].as_ref().unwrap().held_bytes;
    assert!((20 << 20..=46 << 20).contains(&held(&bench, 0)), "{}", held(&bench, 0));
    let mut other = bench.connect_to(VolumeId(1));
    for _ in 0..100 {
        other.write_all(&request(READ, 0, 7, 0, 4096)).unwrap();
        bench.turn();
        bench.turn();
        assert!(is_answered(&mut other), "the other volume is served");
    }
    // Who begins to read gets everything.
    let mut reader = greedy.pop().unwrap();
    let reader = std::thread::spawn(move || {
        let mut answer = vec![0; 16 + (1 << 20)];
        reader.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        (0..64).all(|_| reader.read_exact(&mut answer).is_ok() && answer[4..8] == [0; 4])
    });
    while !reader.is_finished() {
        bench.turn_or_wait();
    }
    assert!(reader.join().unwrap());
    drop((greedy, other));
    bench.server.ready(&(0..17).map(|index| FIRST_TOKEN + index).collect::<Vec<_>>());
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    assert_eq!((held(&bench, 0), held(&bench, 1), bench.server.free.len()), (0, 0, 17));
    bench.server.stop(bench.now_ns);
}

#[test]
fn many_connections_to_one_volume_leave_places_to_another() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    bench.add(Target::null(VolumeId(1), BlockSize::B4096, BLOCKS), &Limits::unlimited());
    let crowd: Vec<_> = (0..1000).map(|_| bench.connect()).collect();
    let mut other = bench.connect_to(VolumeId(1));
    other.write_all(&request(READ, 0, 7, 0, 4096)).unwrap();
    (0..100).for_each(|_| bench.turn());
    assert!(is_answered(&mut other));
    let figures = bench.server.figures(bench.now_ns);
    assert_eq!(
        (figures[0].connections, figures[0].refused),
        (CONNECTIONS / 2, 1000 - u64::from(CONNECTIONS / 2))
    );
    assert_eq!((figures[1].connections, figures[1].refused), (1, 0));
    drop(crowd);
    bench.server.stop(bench.now_ns);
}

#[test]
fn a_turn_has_a_bound_and_all_have_their_turn() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut clients: Vec<_> = (0..CONNECTIONS / 2).map(|_| bench.connect()).collect();
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    for client in &mut clients {
        client.write_all(&request(READ, 0, 7, 0, 4096)).unwrap();
    }
    bench.server.ready(&(0..CONNECTIONS / 2).map(|index| FIRST_TOKEN + index).collect::<Vec<_>>());
    let mut answered = 0;
    for turn in 1..=2 {
        bench.turn();
        answered += clients.iter_mut().map(|client| usize::from(is_answered(client))).sum::<usize>();
        assert_eq!(answered, turn * TURN_CONNECTIONS);
    }
    bench.server.stop(bench.now_ns);
}

/// The followed requests that have ended, each with its stages and their lengths.
fn followed(bench: &mut Bench) -> Vec<(trace::Record, Vec<(Stage, u64)>)> {
    let (mut all, mut spans) = (Vec::new(), Vec::new());
    while let Some(record) = bench.reader.read() {
        if record.stage == Stage::Io {
            let sum: u64 = spans.iter().map(|(_, ns)| ns).sum();
            assert_eq!(sum, record.t1_ns - record.t0_ns, "spans add up");
            all.push((record, std::mem::take(&mut spans)));
        } else if record.stage != Stage::Depends {
            spans.push((record.stage, record.t1_ns - record.t0_ns));
        }
    }
    all
}

#[test]
fn a_followed_request_says_how_long_it_waited_for_credits_and_for_its_reader() {
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let target = null().with_sampling(1);
    let mut bench = Bench::new(64, target, Limits { packets: work, ..Limits::unlimited() });
    let mut client = bench.connect();
    let octets: Vec<u8> = (0..3).flat_map(|cookie| request(READ, 0, cookie, 0, 1 << 20)).collect();
    client.write_all(&octets).unwrap();
    assert!(bench.sleeps());
    let received_ns = bench.now_ns - QUIET_TURNS as u64 * 1000 + 1000;
    // 4 operations each, so that all but the first wait; and their client does not read.
    for _ in 0..100 {
        bench.now_ns += 100_000_000;
        bench.turn();
    }
    client.set_nonblocking(true).unwrap();
    let mut scratch = vec![0; 1 << 20];
    let mut bytes = 0;
    while bytes < 3 * (16 + (1 << 20)) {
        bytes += client.read(&mut scratch).unwrap_or(0);
        bench.server.ready(&[FIRST_TOKEN]);
        bench.turn();
    }
    let all = followed(&mut bench);
    assert_eq!(all.len(), 3);
    for (number, (record, spans)) in all.iter().enumerate() {
        assert_eq!((record.t0_ns, record.len, record.kind), (received_ns, 1 << 20, trace::Kind::Read));
        let of = |wanted| spans.iter().find(|(stage, _)| *stage == wanted).map_or(0, |(_, ns)| *ns);
        let parked_s = of(Stage::Park) as f64 / 1e9;
        assert!(
            (parked_s - number as f64 * 4.0).abs() <= 1.5,
            "{number}: parked for {parked_s} s: {spans:?}"
        );
        assert!(of(Stage::Send) > 1_000_000_000, "{number}: {spans:?}");
    }
    assert_eq!(bench.server.tracer.live(), 0);
    bench.server.stop(bench.now_ns);
}

#[test]
fn a_flush_names_the_writes_before_it_and_who_leaves_is_followed_no_more() {
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    let mut bench = Bench::new(64, null().with_sampling(1), Limits::unlimited());
    let mut client = bench.connect();
    for cookie in 0..3 {
        let mut octets = request(WRITE, 0, cookie, 0, 4096);
        octets.resize(octets.len() + 4096, 0);
        client.write_all(&octets).unwrap();
        bench.turn();
        bench.turn();
    }
    client.write_all(&request(3, 0, 3, 0, 0)).unwrap();
    bench.turn();
    bench.turn();
    let records: Vec<_> = std::iter::from_fn(|| bench.reader.read()).collect();
    let writes: Vec<u64> = records
        .iter()
        .filter(|record| record.stage == Stage::Io && record.kind == trace::Kind::Write)
        .map(|record| record.trace.0)
        .collect();
    let depends = records.iter().filter(|record| record.stage == Stage::Depends).map(|record| record.link);
    assert_eq!((writes.len(), depends.collect::<Vec<_>>()), (3, writes));
    // A second flush has nothing left to wait for.
    client.write_all(&request(3, 0, 4, 0, 0)).unwrap();
    bench.turn();
    bench.turn();
    assert!(!std::iter::from_fn(|| bench.reader.read()).any(|record| record.stage == Stage::Depends));
    bench.server.set_limits(bench.now_ns, VolumeId(0), &Limits { packets: work, ..Limits::unlimited() });
    (0..20).for_each(|cookie| client.write_all(&request(READ, 0, cookie, 0, 1 << 20)).unwrap());
    bench.turn();
    assert!(bench.server.tracer.live() > 0);
    drop(client);
    bench.server.ready(&[FIRST_TOKEN]);
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    assert_eq!(bench.server.tracer.live(), 0);
    // Off, nothing is followed.
    bench.server.set_sampling(VolumeId(0), 0);
    let ended = bench.server.tracer.counters();
    let mut client = bench.connect();
    client.write_all(&request(3, 0, 7, 0, 0)).unwrap();
    (0..3).for_each(|_| bench.turn());
    assert_eq!(bench.server.tracer.counters(), ended);
    bench.server.stop(bench.now_ns);
}

#[test]
fn nobody_who_reads_traces_is_waited_for() {
    const READS: u64 = 20_000;
    let mut bench = Bench::new(64, null().with_sampling(1), Limits::unlimited());
    let mut client = bench.connect();
    let mut answer = [0; 16 + 4096];
    for cookie in 0..READS {
        client.write_all(&request(READ, 0, cookie, (cookie % BLOCKS) << 12, 4096)).unwrap();
        bench.turn();
        client.read_exact(&mut answer).unwrap();
    }
    // Four records at most of each are in a ring of 4096.
    let all = followed(&mut bench);
    assert!(all.len() >= 1000 && bench.reader.lost() > 0, "{} kept, {} lost", all.len(), bench.reader.lost());
    let blocks: Vec<u64> = all.iter().map(|(record, _)| record.link).collect();
    assert!(blocks.is_sorted() && blocks.last() == Some(&(READS - 1)), "in order, to the last");
    bench.server.stop(bench.now_ns);
}

/// From the client's bytes to the collector, in virtual time: nothing but what is injected takes any.
#[test]
fn writes_that_the_medium_answers_late_are_the_outliers() {
    const WRITES: u64 = 20_000;
    const DELAY_NS: u64 = 5_000_000;
    let spec = media::FaultSpec { seed: 1, write_delay: 0.01, delay_ns: DELAY_NS, ..Default::default() };
    let (target, _) = Target::memory(VolumeId(0), BlockSize::B4096, BLOCKS, false).unwrap();
    let mut bench = Bench::new(64, target.with_sampling(1), Limits::unlimited());
    bench.server.set_faults(VolumeId(0), &spec);
    let outlier = trace::OutlierConfig { per_second_max: u32::MAX, ..Default::default() };
    let config = trace::CollectorConfig { outliers_max: WRITES as usize, outlier, ..Default::default() };
    let reader = std::mem::replace(&mut bench.reader, trace::ring(2).1);
    let mut collector = trace::Collector::new(vec![reader], config);
    let mut client = bench.connect();
    client.set_nonblocking(true).unwrap();
    let (mut octets, mut answer, mut late) = (Vec::new(), [0; 16], Vec::new());
    for cookie in 0..WRITES {
        octets.clear();
        octets.extend(request(WRITE, 0, cookie, (cookie % BLOCKS) << 12, 4096));
        octets.resize(octets.len() + 4096, cookie as u8);
        client.write_all(&octets).unwrap();
        let asked_ns = bench.now_ns;
        bench.turn();
        while client.read(&mut answer).is_err() {
            bench.now_ns += 100_000;
            bench.turn();
        }
        late.extend((bench.now_ns - asked_ns >= DELAY_NS).then_some(cookie));
        collector.collect(usize::MAX);
    }
    let delayed = bench.server.figures(bench.now_ns)[0].target.faults_delayed;
    assert_eq!(late.len() as u64, delayed, "all that was delayed, and nothing else, was late");
    let query = trace::Query { outliers: true, limit: usize::MAX, ..Default::default() };
    let outliers = collector.find(&query);
    let named =
        outliers.iter().filter(|(_, found)| found.is_some_and(|(_, culprit)| culprit == Stage::Media));
    let found = named.filter(|(trace, _)| late.binary_search(&trace.lba.0).is_ok()).count() as f64;
    let (precision, recall) = (found / outliers.len() as f64, found / late.len() as f64);
    assert!(
        late.len() > 150 && precision >= 0.99 && recall >= 0.99,
        "precision {precision}, recall {recall}"
    );
    bench.server.stop(bench.now_ns);
}
