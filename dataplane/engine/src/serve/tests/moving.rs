//! Volumes that go from worker to worker while clients use them: two servers, turned one after the other.

use std::path::PathBuf;

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::serve::moving::HandedOver;

const PAGE: usize = 4096;

struct Pair {
    /// `None` once it has ended.
    servers: [Option<Server>; 2],
    waits: [WaitPoint; 2],
    now_ns: u64,
}

impl Pair {
    /// The volume is at the first, which has so many places, as has the second.
    fn new(places: [u32; 2], target: Target, limits: Limits) -> Pair {
        let memory = IoSlabConfig { regions: 64, hugepages: false };
        let slab = IoSlab::new(memory).unwrap();
        let mut waits = [WaitPoint::new().unwrap(), WaitPoint::new().unwrap()];
        let moves = Moves::between(&waits.each_ref().map(WaitPoint::waker));
        let mut plans = places.into_iter().map(|connections_max| ServePlan {
            memory,
            connections_max,
            trace_records: 1 << 12,
            has_files: false,
        });
        let servers =
            moves.into_iter().map(|moves| Server::new(&slab, &plans.next().unwrap(), tracer(), moves, 1));
        let mut servers: Vec<_> = servers.map(Some).collect();
        let volume = target.volume();
        let first = servers[0].as_mut().unwrap();
        let files = Server::open_files(&target).unwrap();
        first.add(target, files, &mut waits[0]).unwrap();
        first.set_limits(1, volume, &limits);
        let [first, second] = [servers.remove(0), servers.remove(0)];
        Pair { servers: [first, second], waits, now_ns: 1 }
    }

    fn server(&mut self, worker: usize) -> &mut Server {
        self.servers[worker].as_mut().unwrap()
    }

    fn connect(&mut self, worker: usize) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let arrival = Arrival { stream: theirs.into(), guest: guest(VolumeId(0)), rest: Vec::new() };
        let (server, wait) = (self.servers[worker].as_mut().unwrap(), &mut self.waits[worker]);
        server.connect(self.now_ns, arrival, wait);
        ours
    }

    fn turn(&mut self) {
        for (server, wait) in self.servers.iter_mut().zip(&mut self.waits) {
            if let Some(server) = server {
                server.turn(&Stopwatch::still(self.now_ns), wait).unwrap();
            }
        }
    }

    fn begin(&mut self, to: usize) -> Receiver<Result<HandedOver, MoveError>> {
        let (reply, answer) = bounded(1);
        let (owner, now_ns) = (self.owner(), self.now_ns);
        self.server(owner).hand_over(now_ns, VolumeId(0), to, reply);
        answer
    }

    /// Who has the volume.
    fn owner(&self) -> usize {
        let has =
            |server: &Option<Server>| server.as_ref().is_some_and(|s| s.targets.iter().flatten().count() > 0);
        self.servers.iter().position(has).unwrap()
    }

    /// To the other one, in as many turns as it takes.
    fn go(&mut self, mut between: impl FnMut(&mut Pair)) -> Result<Moved, MoveError> {
        let answer = self.begin(1 - self.owner());
        for _ in 0..1_000_000 {
            if let Ok(outcome) = answer.try_recv() {
                return outcome.map(|done| done.moved);
            }
            between(self);
            self.turn();
        }
        panic!("no answer");
    }

    fn held(&self) -> (u32, u64) {
        let held = |server: &Server| {
            (server.shaper.parked().items, server.connections.iter().flatten().count() as u64)
        };
        self.servers.iter().flatten().map(held).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    fn stop(self) {
        let now_ns = self.now_ns;
        self.servers.into_iter().flatten().for_each(|server| server.stop(now_ns));
    }
}

fn tracer() -> Tracer {
    Tracer::new(0, trace::ring(1 << 12).0)
}

/// A folder and a thin volume in it.
fn thin(name: &str) -> (PathBuf, Target) {
    let path = std::env::temp_dir().join(format!("tidegate-moving-{name}-{}", std::process::id()));
    let _old = std::fs::remove_dir_all(&path);
    let place = volume::store::create(&path, BLOCKS << 12, BlockSize::B4096).unwrap();
    let (volume, _) = volume::open(&place, VolumeId(0), volume::Config::default()).unwrap();
    (path.clone(), Target::thin(volume, path))
}

/// Writes pages of its own and reads them back, `rounds` times; true when all is as it was written.
fn verifies(mut client: UnixStream, number: u64, rounds: u64) -> bool {
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let offset = |page: u64| (number * 64 + page) * PAGE as u64;
    (0..rounds).all(|round| {
        let value = |page: u64| (round * 31 + page + number) as u8;
        for page in 0..16 {
            let head = request(WRITE, 0, page, offset(page), PAGE as u32);
            client.write_all(&[&head[..], &[value(page); PAGE]].concat()).unwrap();
        }
        let mut head = [0; 16];
        let written = (0..16).all(|_| client.read_exact(&mut head).is_ok() && head[4..8] == [0; 4]);
        let mut page = [0; PAGE];
        written
            && (0..16).all(|at| {
                client.write_all(&request(READ, 0, at, offset(at), PAGE as u32)).unwrap();
                client.read_exact(&mut head).is_ok()
                    && head[4..8] == [0; 4]
                    && client.read_exact(&mut page).is_ok()
                    && page == [value(at); PAGE]
            })
    })
}

#[test]
fn a_busy_volume_in_files_goes_back_and_forth_and_its_clients_notice_nothing() {
    let (path, target) = thin("busy");
    let mut pair = Pair::new([16, 16], target, Limits::unlimited());
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let client = pair.connect(0);
            std::thread::spawn(move || verifies(client, number, 100))
        })
        .collect();
    let mut moves = 0;
    while clients.iter().any(|client| !client.is_finished()) {
        match pair.go(|pair| pair.now_ns = crate::clock::monotonic_ns()) {
            Ok(moved) => {
                assert!(moved.connections <= 4);
                moves += 1;
            }
            // A disk that others use may take a second; then it stays, and goes the next time.
            Err(why) => assert_eq!(why, MoveError::Slow),
        }
    }
    assert!(clients.into_iter().all(|client| client.join().unwrap()));
    assert!(moves > 20, "{moves}");
    let (owner, now_ns) = (pair.owner(), pair.now_ns);
    let figures = pair.server(owner).figures(now_ns);
    let here = figures.iter().max_by_key(|figures| figures.at_ns).unwrap();
    let counters = here.target;
    assert_eq!(
        (counters.writes, counters.reads, counters.errors),
        (6400, 6400, 0),
        "counted through all moves"
    );
    assert_eq!(here.worker, owner);
    pair.stop();
    std::fs::remove_dir_all(&path).unwrap();
}

/// Of a file system behind a server that is away it could not hear: it asks for nothing by the directory's name.
#[test]
fn a_worker_takes_a_volume_without_asking_its_file_system_for_it() {
    let mut pair = Pair::new([16, 16], null(), Limits::unlimited());
    let (path, _) = thin("taken");
    let place = volume::HostDirectory::open(&path).unwrap();
    let (volume, _) = volume::open(&place, VolumeId(1), volume::Config::default()).unwrap();
    let target = Target::thin(volume, path.clone());
    let files = Server::open_files(&target).unwrap();
    let elsewhere = path.with_extension("elsewhere");
    std::fs::rename(&path, &elsewhere).unwrap();
    assert!(matches!(Server::open_files(&target), Err(TargetError::Files(_))), "whoever asks hears of it");
    let (server, wait) = (pair.servers[0].as_mut().unwrap(), &mut pair.waits[0]);
    server.add(target, files, wait).unwrap();
    server.set_limits(1, VolumeId(1), &Limits::unlimited());
    let (mut client, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let arrival = Arrival { stream: theirs.into(), guest: guest(VolumeId(1)), rest: Vec::new() };
    server.connect(1, arrival, wait);
    let client = std::thread::spawn(move || {
        let is_served = verifies(client.try_clone().unwrap(), 0, 2);
        client.write_all(&request(3, 0, 9, 0, 0)).unwrap();
        let mut head = [0; 16];
        is_served && client.read_exact(&mut head).is_ok() && head[4..8] == [0; 4]
    });
    while !client.is_finished() {
        pair.now_ns = crate::clock::monotonic_ns();
        pair.turn();
    }
    assert!(client.join().unwrap());
    pair.stop();
    std::fs::remove_dir_all(&elsewhere).unwrap();
}

/// How many of these reads are answered in ten seconds, ten clients asking for four operations each time.
fn answered(moves: bool) -> (usize, u64) {
    let work = DimLimits { work: Some(Work::at(50)), ..DimLimits::default() };
    let mut pair = Pair::new([64, 64], null(), Limits { packets: work, ..Limits::unlimited() });
    let mut clients: Vec<_> = (0..10).map(|_| pair.connect(0)).collect();
    for client in &mut clients {
        (0..100).for_each(|cookie| client.write_all(&request(READ, 0, cookie, 0, 1 << 20)).unwrap());
        client.set_nonblocking(true).unwrap();
    }
    let mut scratch = vec![0; 1 << 20];
    let mut received = 0;
    for step in 0..1000 {
        pair.now_ns += 10_000_000;
        if moves && step % 7 == 3 {
            let before = pair.held();
            pair.go(|_| {}).unwrap();
            assert!(pair.held().1 == 10 && pair.held().0 <= 10 && before.1 == 10);
        }
        (0..8).for_each(|_| pair.turn());
        for client in &mut clients {
            while let Ok(count @ 1..) = client.read(&mut scratch) {
                received += count;
            }
        }
    }
    let (owner, now_ns) = (pair.owner(), pair.now_ns);
    let figures = pair.server(owner).figures(now_ns);
    let admitted = figures.iter().max_by_key(|f| f.at_ns).unwrap().credits.admitted_packets;
    drop(clients);
    pair.stop();
    (received, admitted)
}

#[test]
fn what_waits_for_credits_goes_along_and_credits_are_neither_gained_nor_lost() {
    let (stayed, moved) = (answered(false), answered(true));
    assert!(stayed.0 > 100 << 20, "{}", stayed.0);
    // 50 operations in a second, and the first second's worth beforehand.
    assert!((540..=560).contains(&stayed.1), "{}", stayed.1);
    assert!(moved.1.abs_diff(stayed.1) <= 4, "{} and {}", moved.1, stayed.1);
}

#[test]
fn who_cannot_take_a_volume_sends_it_back() {
    let mut pair = Pair::new([16, 3], null(), Limits::unlimited());
    let mut clients: Vec<_> = (0..4).map(|_| pair.connect(0)).collect();
    pair.turn();
    let refused = pair.go(|_| {}).unwrap_err();
    assert_eq!(refused, MoveError::Full { worker: 1, left: 3, needed: 4 });
    assert_eq!(pair.owner(), 0);
    for client in &mut clients {
        client.write_all(&request(READ, 0, 1, 0, PAGE as u32)).unwrap();
        pair.turn();
        pair.turn();
        assert!(is_answered(client), "it goes on where it was");
    }
    assert_eq!(pair.begin(2).recv().unwrap().unwrap_err(), MoveError::NoWorker { worker: 2, workers: 2 });
    assert_eq!(
        pair.begin(0).recv().unwrap().unwrap().moved,
        Moved { pause_ns: 0, drain_ns: 0, connections: 4 }
    );
    let (reply, answer) = bounded(1);
    pair.server(0).hand_over(1, VolumeId(7), 1, reply);
    assert_eq!(answer.recv().unwrap().unwrap_err(), MoveError::Absent(VolumeId(7)));
    // One after the other.
    drop(clients.pop());
    (0..QUIET_TURNS).for_each(|_| pair.turn());
    let first = pair.begin(1);
    assert_eq!(pair.begin(1).recv().unwrap().unwrap_err(), MoveError::Busy);
    pair.turn();
    pair.turn();
    assert_eq!(first.recv().unwrap().unwrap().moved.connections, 3);
    // Home, where nobody is any more.
    pair.servers[0] = None;
    assert_eq!(pair.go(|_| {}).unwrap_err(), MoveError::WorkerGone(0));
    clients[0].write_all(&request(READ, 0, 1, 0, PAGE as u32)).unwrap();
    pair.turn();
    pair.turn();
    assert!(is_answered(&mut clients[0]));
    pair.stop();
}

#[test]
fn who_comes_late_is_sent_after_the_volume_and_so_are_its_limits() {
    let mut pair = Pair::new([16, 16], null(), Limits::unlimited());
    pair.go(|_| {}).unwrap();
    let mut late = pair.connect(0);
    late.write_all(&request(READ, 0, 1, 0, PAGE as u32)).unwrap();
    (0..3).for_each(|_| pair.turn());
    assert!(is_answered(&mut late));
    let work = DimLimits { work: Some(Work::at(1)), ..DimLimits::default() };
    pair.server(0).set_limits(1, VolumeId(0), &Limits { packets: work, ..Limits::unlimited() });
    pair.turn();
    late.write_all(&request(READ, 0, 2, 0, PAGE as u32).repeat(9)).unwrap();
    (0..9).for_each(|_| pair.turn());
    assert_eq!(pair.held(), (1, 1), "one waits for credits");
    // Somebody who is in the middle of the way.
    let going = pair.begin(0);
    pair.server(1).turn(&Stopwatch::still(1), &mut WaitPoint::new().unwrap()).unwrap();
    let mut between = pair.connect(1);
    (0..3).for_each(|_| pair.turn());
    assert!(going.recv().unwrap().is_ok());
    assert_eq!((pair.owner(), pair.held()), (0, (1, 2)));
    between.write_all(&request(3, 0, 2, 0, 0)).unwrap();
    (0..3).for_each(|_| pair.turn());
    between.set_nonblocking(true).unwrap();
    assert!(between.read(&mut [0; 16]).is_ok_and(|count| count == 16), "its flush passes");
    pair.stop();
}

#[test]
fn a_volume_whose_medium_does_not_answer_stays_and_goes_on() {
    let (path, target) = thin("slow");
    let mut pair = Pair::new([16, 16], target, Limits::unlimited());
    let mut client = pair.connect(0);
    client.write_all(&[&request(WRITE, FUA, 1, 0, PAGE as u32)[..], &[7; PAGE]].concat()).unwrap();
    pair.turn();
    let answer = pair.begin(1);
    // Nobody has looked at what the files say by then.
    pair.now_ns += 2_000_000_000;
    pair.turn();
    assert_eq!(answer.recv().unwrap().unwrap_err(), MoveError::Slow);
    client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let mut head = [0; 16];
    while client.read_exact(&mut head).is_err() {
        pair.now_ns += 1_000_000;
        pair.turn();
    }
    assert_eq!((head[4..8].to_vec(), pair.owner()), (vec![0; 4], 0));
    pair.stop();
    std::fs::remove_dir_all(&path).unwrap();
}

/// A volume whose medium answers writes so late, and no reads. Virtual time: nothing else takes any.
fn late(delay_ns: u64) -> (Pair, UnixStream) {
    let (target, _) = Target::memory(VolumeId(0), BlockSize::B4096, BLOCKS, false).unwrap();
    let mut pair = Pair::new([16, 16], target, Limits::unlimited());
    let spec = media::FaultSpec { seed: 1, write_delay: 1.0, delay_ns, ..Default::default() };
    pair.server(0).set_faults(VolumeId(0), &spec);
    let mut client = pair.connect(0);
    client.write_all(&[&request(WRITE, 0, 1, 0, PAGE as u32)[..], &[7; PAGE]].concat()).unwrap();
    pair.turn();
    (pair, client)
}

/// The first worker sleeps, though its client goes on asking.
fn sleeps(pair: &mut Pair, client: &mut UnixStream) -> bool {
    client.write_all(&request(3, 0, 2, 0, 0)).unwrap();
    (0..QUIET_TURNS).for_each(|_| pair.turn());
    !pair.server(0).has_work()
}

/// Both requests are answered within turns that something announces.
fn answers(pair: &mut Pair, client: &mut UnixStream) -> bool {
    while (0..2).any(|worker| pair.server(worker).has_work()) {
        pair.turn();
    }
    client.set_nonblocking(true).unwrap();
    let mut heads = [0; 64];
    client.read(&mut heads).is_ok_and(|count| count == 32)
}

#[test]
fn what_waits_for_a_medium_to_go_elsewhere_or_away_lets_the_worker_sleep() {
    let (mut pair, mut client) = late(500_000_000);
    let answer = pair.begin(1);
    assert!(sleeps(&mut pair, &mut client));
    // Its answer is all that the other worker waits for.
    pair.now_ns += 500_000_000;
    pair.turn();
    assert!(answers(&mut pair, &mut client));
    assert!(answer.recv().unwrap().is_ok() && pair.owner() == 1);
    pair.stop();
    // It stays, and its client goes on where it is.
    let (mut pair, mut client) = late(3_000_000_000);
    let answer = pair.begin(1);
    assert!(sleeps(&mut pair, &mut client));
    pair.now_ns += 2_000_000_000;
    pair.turn();
    assert_eq!(answer.recv().unwrap().unwrap_err(), MoveError::Slow);
    assert!(pair.server(0).has_work(), "what its client asked for");
    (0..QUIET_TURNS).for_each(|_| pair.turn());
    pair.now_ns += 1_000_000_000;
    pair.turn();
    assert!(answers(&mut pair, &mut client) && pair.owner() == 0);
    pair.stop();
    // It is let go: what was handed out is answered, and nothing more.
    let (mut pair, mut client) = late(500_000_000);
    let (reply, gone) = bounded(1);
    pair.server(0).leave(1, VolumeId(0), Leave::Gone, reply);
    assert!(sleeps(&mut pair, &mut client));
    for _ in 0..1000 {
        pair.now_ns += 1_000_000;
        pair.turn();
    }
    assert!(gone.recv().unwrap().is_ok());
    let mut heads = [0; 64];
    assert_eq!(client.read(&mut heads).unwrap(), 16);
    assert!(client.read(&mut heads).map_or(true, |count| count == 0), "it is closed");
    pair.stop();
}

#[test]
fn a_volume_that_is_on_its_way_when_all_ends_is_closed_as_any_other() {
    let (path, target) = thin("end");
    let mut pair = Pair::new([16, 16], target, Limits::unlimited());
    let mut client = pair.connect(0);
    let clients = std::thread::spawn(move || {
        let verified = verifies(client.try_clone().unwrap(), 0, 3);
        // The end, and not an error.
        verified && client.read(&mut [0; 16]).is_ok_and(|count| count == 0)
    });
    let counters = |pair: &Pair| pair.servers[0].as_ref().unwrap().figures(0)[0].target;
    while counters(&pair).reads < 48 {
        pair.now_ns = crate::clock::monotonic_ns();
        pair.turn();
    }
    let answer = pair.begin(1);
    let mut turns = 0;
    while pair.servers[0].as_ref().unwrap().targets.iter().flatten().count() > 0 {
        pair.now_ns = crate::clock::monotonic_ns();
        let (server, wait) = (pair.servers[0].as_mut().unwrap(), &mut pair.waits[0]);
        server.turn(&Stopwatch::still(pair.now_ns), wait).unwrap();
        turns += 1;
        assert!(turns < 1_000_000);
    }
    // The other one has not looked yet.
    pair.stop();
    assert!(answer.try_recv().is_err(), "nobody says that it has arrived");
    assert!(clients.join().unwrap());
    let place = volume::HostDirectory::open(&path).unwrap();
    let (_volume, recovery) = volume::open(&place, VolumeId(0), volume::Config::default()).unwrap();
    assert_eq!(recovery.batches_cut, 0);
    std::fs::remove_dir_all(&path).unwrap();
}
