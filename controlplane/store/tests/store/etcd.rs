//! The same suite over etcd, and what only a store elsewhere can do: be away, come back, be full of the past.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{
    Cluster, Etcd, HISTORY_REVISIONS, Identity, KeyRange, LeaseId, Operation, Outcome, Store, StoreError,
    Tls, Transaction, WatchError,
};

use crate::server::EtcdServer;
use crate::suite::{self, Folder};

/// The program, or nothing after saying that the test is skipped, and why.
fn program(test: &str) -> Option<PathBuf> {
    let found = EtcdServer::find();
    if found.is_none() {
        let line =
            format!("skipped: {test}: there is no `etcd` here (Debian: apt-get install etcd-server)\n");
        eprint!("{line}");
        if let Some(path) = std::env::var_os("TIDEGATE_TEST_SKIPS") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            file.and_then(|mut file| file.write_all(line.as_bytes())).unwrap();
        }
    }
    found
}

/// A store whose keys nobody else has.
fn store(server: &EtcdServer) -> Etcd {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let prefix = format!("test-{}/", COUNT.fetch_add(1, Ordering::Relaxed));
    Etcd::connect(&Cluster { endpoints: vec![server.address()], prefix, tls: None }).unwrap()
}

fn revision(outcome: Outcome) -> u64 {
    match outcome {
        Outcome::Done { revision } => revision,
        conflict => panic!("{conflict:?}"),
    }
}

#[test]
fn a_store_in_etcd_is_a_store() {
    let Some(program) = program("etcd::a_store_in_etcd_is_a_store") else { return };
    let folder = Folder::new("etcd-conformance");
    let server = EtcdServer::start(program, &folder.0);
    suite::all(&|| store(&server));
}

#[test]
fn an_etcd_that_is_killed_is_away_until_it_is_back_and_nothing_is_lost() {
    let Some(program) = program("etcd::an_etcd_that_is_killed_is_away_until_it_is_back_and_nothing_is_lost")
    else {
        return;
    };
    let folder = Folder::new("etcd-kill");
    let mut server = EtcdServer::start(program, &folder.0);
    let store = store(&server);
    let mut watch = store.watch(KeyRange::prefix("k"), store.revision().unwrap() + 1).unwrap();
    let lease = store.lease_grant(Duration::from_secs(60)).unwrap();
    let bound = Operation::Put { key: "k/bound".into(), value: vec![], lease: Some(lease) };
    let transaction = Transaction { compares: vec![], operations: vec![bound] };
    let mut last = revision(store.transact(&transaction).unwrap());
    for round in 0..3 {
        server.kill();
        let began = Instant::now();
        let away = store.transact(&Transaction::new().put("k/lost", "x")).unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
        assert!(matches!(away, StoreError::Away(_)), "{away:?}");
        let said = away.to_string();
        assert!(said.contains(&server.address()) && said.contains("see whether it runs"), "{said}");
        assert!(matches!(store.get("k/bound"), Err(StoreError::Away(_))));
        let watched = loop {
            // What came before is told first.
            match watch.next(Duration::from_secs(1)) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(watched, WatchError::Store(StoreError::Away(_))), "{watched}");
        server.go();
        let entry = store.get("k/bound").unwrap().unwrap();
        assert_eq!((entry.modified, entry.lease), (last, Some(lease)), "all of it is there");
        store.lease_keep_alive(lease).unwrap();
        // The watch goes on where it was.
        let again = Transaction::new().expect("k/bound", last);
        let put = Operation::Put { key: "k/bound".into(), value: vec![round], lease: Some(lease) };
        let again = Transaction { operations: vec![put], ..again };
        last = revision(store.transact(&again).unwrap());
        let told = watch.next(Duration::from_secs(20)).unwrap();
        assert_eq!((told[0].revision, told[0].changes[0].key.as_str()), (last, "k/bound"));
        assert_eq!(told.len(), 1, "{told:?}");
    }
    assert!(matches!(
        store.lease_keep_alive(LeaseId(lease.0 ^ 1)),
        Err(StoreError::Refused(store::Refusal::Lease))
    ));
}

#[test]
fn one_that_stands_still_is_given_up_in_time() {
    let Some(program) = program("etcd::one_that_stands_still_is_given_up_in_time") else { return };
    let folder = Folder::new("etcd-stopped");
    let server = EtcdServer::start(program, &folder.0);
    let store = store(&server);
    server.signal("-STOP");
    let began = Instant::now();
    let late = store.transact(&Transaction::new().put("k", "x")).unwrap_err();
    let took = began.elapsed();
    assert!(matches!(late, StoreError::Away(_)), "{late:?}");
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");
    server.signal("-CONT");
    // That nobody answered does not say that it was not done.
    let began = Instant::now();
    while store.get("k").is_err() {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn history_in_etcd_ends_and_who_comes_too_late_is_told_where_it_begins() {
    let test = "etcd::history_in_etcd_ends_and_who_comes_too_late_is_told_where_it_begins";
    let Some(program) = program(test) else { return };
    let folder = Folder::new("etcd-history");
    let server = EtcdServer::start(program, &folder.0);
    let store = store(&server);
    let first = revision(store.transact(&Transaction::new().put("k", "x")).unwrap());
    let mut early = store.watch(KeyRange::prefix("none"), first).unwrap();
    let all = HISTORY_REVISIONS + HISTORY_REVISIONS / 5;
    let wanted = AtomicU64::new(0);
    // Many at once: etcd makes them durable together.
    std::thread::scope(|scope| {
        for _ in 0..32 {
            let (store, wanted) = (&store, &wanted);
            scope.spawn(move || {
                while wanted.fetch_add(1, Ordering::Relaxed) < all {
                    revision(store.transact(&Transaction::new().put("k", "y")).unwrap());
                }
            });
        }
    });
    let last = store.revision().unwrap();
    assert!(last >= first + all);
    let Err(WatchError::Compacted { first: begins }) = store.watch(KeyRange::prefix(""), first + 1) else {
        panic!("that is forgotten")
    };
    let left = last + 1 - begins;
    assert!((HISTORY_REVISIONS..=HISTORY_REVISIONS * 12 / 10).contains(&left), "{left} are left");
    assert!(matches!(
        store.watch(KeyRange::prefix(""), begins - 1),
        Err(WatchError::Compacted { first }) if first == begins
    ));
    assert!(
        matches!(store.watch(KeyRange::prefix(""), 0), Err(WatchError::Compacted { first }) if first == begins)
    );
    let mut watch = store.watch(KeyRange::prefix(""), begins).unwrap();
    let (mut seen, mut changes) = (begins - 1, 0);
    while seen < last {
        for batch in watch.next(Duration::from_secs(20)).unwrap() {
            assert_eq!(batch.revision, seen + 1, "nothing is left out");
            (seen, changes) = (batch.revision, changes + batch.changes.len());
        }
    }
    assert_eq!(changes as u64, left);
    // One that kept up is not told of what is forgotten.
    assert_eq!(early.next(Duration::ZERO).unwrap(), vec![]);
}

#[test]
fn an_etcd_with_tls_is_reached_by_whom_it_knows() {
    let Some(program) = program("etcd::an_etcd_with_tls_is_reached_by_whom_it_knows") else { return };
    let folder = Folder::new("etcd-tls");
    let own = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        Identity { certificate: certificate.pem().into_bytes(), key: key.serialize_pem().into_bytes() }
    };
    let (members, ours, foreign) = (own("127.0.0.1"), own("control-plane"), own("somebody"));
    let file = |name: &str, text: &[u8]| {
        let path = folder.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (file("members.crt", &members.certificate), file("members.key", &members.key));
    let known = file("ours.crt", &ours.certificate);
    let words =
        ["--cert-file", &certificate, "--key-file", &key, "--client-cert-auth", "--trusted-ca-file", &known];
    let server = EtcdServer::with(program, &folder.0, true, &words);
    let connect = |authority: &Identity, identity: Option<&Identity>| {
        let tls = Tls { authority: authority.certificate.clone(), identity: identity.cloned() };
        let (endpoints, prefix) = (vec![server.address()], "tls/".to_owned());
        Etcd::connect(&Cluster { endpoints, prefix, tls: Some(tls) })
    };
    let store = connect(&members, Some(&ours)).unwrap();
    revision(store.transact(&Transaction::new().put("k", "x")).unwrap());
    assert_eq!(store.get("k").unwrap().unwrap().value, b"x");
    for refused in
        [connect(&members, Some(&foreign)), connect(&members, None), connect(&foreign, Some(&ours))]
    {
        let why = refused.err().unwrap();
        assert!(matches!(why, StoreError::Away(_)) && why.to_string().contains(&server.address()), "{why}");
    }
}
