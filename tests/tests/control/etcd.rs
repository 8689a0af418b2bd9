//! A control plane that has its store in etcd: either of them is killed, at rest and in the middle of changes.
//!
//! `cargo xtask verify 10` builds a control plane with etcd in it; with any other these tests say that they are skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::gateway::folder;
use tests::netns::{self, Held};

use crate::cluster::{Cluster, NodeSettings, controlplane};
use crate::server::EtcdServer;

/// A folder that goes with its etcd.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).expect("the test's folder can be removed");
        }
    }
}

/// An etcd that runs, or nothing after saying why the test is skipped.
fn etcd(test: &str, name: &str) -> Option<(EtcdServer, Folder)> {
    let folder = Folder(folder(&format!("{name}-server")));
    let config = folder.0.join("asked.toml");
    let asked = format!("directory = {:?}\n{}", folder.0, store("http://127.0.0.1:1"));
    std::fs::write(&config, asked).expect("a configuration");
    let checked = said(Command::new(controlplane()).arg("check").arg("--config").arg(&config));
    if checked.1.contains("built without etcd") {
        netns::skip(
            test,
            "the control plane is built without etcd; `cargo xtask verify 10` builds one with it",
        );
        return None;
    }
    assert!(checked.0, "{}", checked.1);
    let Some(program) = EtcdServer::find() else {
        netns::skip(test, "there is no `etcd` here (Debian: apt-get install etcd-server)");
        return None;
    };
    Some((EtcdServer::start(program, &folder.0), folder))
}

/// Lines of a configuration.
fn store(address: &str) -> String {
    format!("[store]\netcd = [{address:?}]\n")
}

/// Whether a program that ends by itself did well, and what it said.
fn said(command: &mut Command) -> (bool, String) {
    let Output { status, stderr, .. } = command.stdout(Stdio::null()).output().expect("it starts");
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

fn cluster(name: &str, etcd: &EtcdServer) -> Cluster {
    Cluster::with(name, 1, NodeSettings::default(), &store(&etcd.address()))
}

fn volumes(cluster: &Cluster) -> Vec<String> {
    let all = cluster.tidegate(&["volume", "list"]);
    let names = all.as_array().expect("a list").iter().map(|volume| volume["name"].as_str().expect("a name"));
    names.map(str::to_owned).collect()
}

#[test]
fn a_control_plane_in_etcd_goes_on_across_kill_9_of_either() {
    let name = "etcd-either";
    let Some((mut etcd, _folder)) =
        etcd("etcd::a_control_plane_in_etcd_goes_on_across_kill_9_of_either", name)
    else {
        return;
    };
    let mut cluster = cluster(name, &etcd);
    cluster.volume("disk", "one");
    let mut client = cluster.client(0, "disk").expect("it is served");
    let block = vec![7; 4096];
    client.write(0, &block).expect("it takes writes");
    assert!(!cluster.folder.join("controlplane/store.redb").exists(), "nothing is in a file");

    // The control plane dies and comes back.
    cluster.kill_controlplane();
    cluster.start_controlplane();
    cluster.until("the node is alive", |cluster| cluster.alive() == 1);
    assert_eq!(volumes(&cluster), ["disk"]);
    assert_eq!(cluster.tidegate(&["status"])["start"], 2);

    // etcd dies: everybody hears so, and volumes are served on.
    etcd.kill();
    let create = ["volume", "create", "more", "--size", "1GiB", "--tenant", "blue"];
    let began = Instant::now();
    let (code, why) = cluster.try_tidegate(&create).expect_err("it cannot be kept");
    assert!(
        code == 1 && why.contains(&etcd.address()) && why.contains("see whether it runs"),
        "{code}: {why}"
    );
    let (code, why) = cluster.try_tidegate(&["volume", "list"]).expect_err("what is kept is not known");
    assert!(code == 1 && why.contains("goes on when its store does"), "{code}: {why}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    client.write(4096, &block).expect("it serves on");
    client.flush().expect("it flushes");

    // It comes back, and all goes on by itself.
    etcd.go();
    cluster.until("it answers again", |cluster| cluster.try_tidegate(&["volume", "list"]).is_ok());
    cluster.until("the node is alive", |cluster| cluster.alive() == 1);
    cluster.until("what was asked for is done, or can be", |cluster| {
        volumes(cluster).iter().any(|name| name == "more") || cluster.try_tidegate(&create).is_ok()
    });
    cluster.volume("another", "one");
    client.write(8192, &block).expect("the same connection goes on");
    let log = std::fs::read_to_string(cluster.folder.join("controlplane.log")).expect("a log");
    assert!(log.contains("the store is back") && !log.contains("is lost"), "{log}");

    // It stands still: the first to ask waits for it a while, who asks then is answered at once.
    etcd.signal("-STOP");
    let (code, why) = cluster.try_tidegate(&["tenant", "put", "green"]).expect_err("it cannot be kept");
    assert!(code == 1 && why.contains("nothing came within 5 s"), "{code}: {why}");
    let began = Instant::now();
    cluster.try_tidegate(&["volume", "list"]).expect_err("what is kept is not known");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    etcd.signal("-CONT");
    cluster.until("it answers again", |cluster| cluster.try_tidegate(&["volume", "list"]).is_ok());
    cluster.until("the node is alive", |cluster| cluster.alive() == 1);

    // Both die.
    etcd.kill();
    cluster.kill_controlplane();
    let config = cluster.folder.join("controlplane.toml");
    let (started, why) = said(Command::new(controlplane()).args(["run", "--config"]).arg(&config));
    assert!(!started && why.contains(&etcd.address()) && why.contains("see whether it runs"), "{why}");
    etcd.go();
    cluster.start_controlplane();
    cluster.until("the node is alive", |cluster| cluster.alive() == 1);
    assert_eq!(volumes(&cluster), ["disk", "more", "another"]);
    let (started, why) = said(Command::new(controlplane()).args(["run", "--config"]).arg(&config));
    assert!(!started && why.contains("another control plane is using"), "{why}");
}

/// What clients have come to, who ask for one tenant after the other, each under a key of its own until it is answered.
#[derive(Default)]
struct Asked {
    next: AtomicU64,
    /// Answered, by number.
    done: Mutex<BTreeSet<u64>>,
    /// Answers that the store is away.
    away: AtomicU64,
    over: AtomicBool,
}

impl Asked {
    fn done(&self) -> usize {
        self.done.lock().expect("nobody panicked").len()
    }

    /// The life of a client.
    fn ask(&self, socket: &Path) {
        while !self.over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let rules: [u8; 0] = [];
            let put = json!({ "name": format!("t{number}"), "vni": null, "weight": 1, "rules": rules });
            let body =
                json!({ "idempotency_key": format!("key-{number}"), "command": { "tenant_put": put } });
            let mut is_done = false;
            netns::until("a change is made, or nobody wants it any more", || {
                is_done = self.ask_once(socket, &body.to_string());
                is_done || self.over.load(Ordering::Relaxed)
            });
            if !is_done {
                return;
            }
            self.done.lock().expect("nobody panicked").insert(number);
        }
    }

    /// Whether it is answered that it is done.
    fn ask_once(&self, socket: &Path, body: &str) -> bool {
        let request = format!(
            "POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let heard = UnixStream::connect(socket).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(request.as_bytes())?;
            let mut said = String::new();
            stream.read_to_string(&mut said).map(|_| said)
        });
        match heard {
            Ok(said) if said.starts_with("HTTP/1.1 200") => return true,
            Ok(said) if said.starts_with("HTTP/1.1 503") => {
                assert!(said.contains("goes on when its store does"), "{said}");
                self.away.fetch_add(1, Ordering::Relaxed);
            }
            Ok(said) => assert!(said.is_empty(), "{said}"),
            // It is between two starts.
            Err(_) => {}
        }
        false
    }
}

/// Ends the clients, also when the test panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn changes_in_the_middle_of_which_etcd_and_the_control_plane_are_killed_are_made_once() {
    let name = "etcd-storm";
    let test = "etcd::changes_in_the_middle_of_which_etcd_and_the_control_plane_are_killed_are_made_once";
    let Some((mut etcd, _folder)) = etcd(test, name) else { return };
    let mut cluster = cluster(name, &etcd);
    let (asked, socket) = (Asked::default(), cluster.socket());
    std::thread::scope(|scope| {
        let _end = End(&asked.over);
        for _ in 0..4 {
            scope.spawn(|| asked.ask(&socket));
        }
        for round in 0..6 {
            let before = asked.done();
            cluster.until("changes are made", |_| asked.done() >= before + 25);
            if round % 3 == 2 {
                cluster.kill_controlplane();
                cluster.start_controlplane();
                continue;
            }
            let before = asked.away.load(Ordering::Relaxed);
            etcd.kill();
            cluster.until("it is told", |_| asked.away.load(Ordering::Relaxed) > before + 4);
            if round % 3 == 1 {
                cluster.kill_controlplane();
            }
            etcd.go();
            if round % 3 == 1 {
                cluster.start_controlplane();
            }
        }
        let before = asked.done();
        cluster.until("changes are made", |_| asked.done() >= before + 25);
    });
    let tenants = cluster.tidegate(&["tenant", "list"]);
    let mut there = BTreeMap::new();
    for tenant in tenants.as_array().expect("a list").iter().filter(|one| one["name"] != "blue") {
        assert_eq!(tenant["revision"], 1, "it is made once: {tenant}");
        let name = tenant["name"].as_str().expect("a name");
        assert!(there.insert(name.to_owned(), ()).is_none(), "{name} is there twice");
    }
    let done = asked.done.lock().expect("nobody panicked");
    println!("{} changes, {} answers that the store is away", done.len(), asked.away.load(Ordering::Relaxed));
    assert!(done.iter().all(|number| there.contains_key(&format!("t{number}"))), "{done:?}: {there:?}");
}

#[test]
fn a_control_plane_that_starts_elsewhere_takes_the_store_over() {
    let name = "etcd-over";
    let Some((etcd, _folder)) =
        etcd("etcd::a_control_plane_that_starts_elsewhere_takes_the_store_over", name)
    else {
        return;
    };
    let mut cluster = cluster(name, &etcd);
    cluster.volume("disk", "one");
    // Another one of the same cluster: another folder, another place to listen at.
    let folder = cluster.folder.join("elsewhere");
    std::fs::create_dir(&folder).expect("a folder");
    let socket = folder.join("cp.sock");
    let text = format!("directory = {folder:?}\n[listen]\nat = [{socket:?}]\n{}", store(&etcd.address()));
    std::fs::write(folder.join("controlplane.toml"), text).expect("a configuration");
    let mut other = Held(
        Command::new(controlplane())
            .args(["run", "--config"])
            .arg(folder.join("controlplane.toml"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).expect("a log file"))
            .spawn()
            .expect("it starts"),
    );
    cluster.until("it listens", |_| UnixStream::connect(&socket).is_ok());
    // The first one finds out when it next writes, and says why it ends.
    cluster.until("the first one ends", |cluster| {
        cluster.try_tidegate(&["tenant", "put", "green"]).is_err()
            && std::fs::read_to_string(cluster.folder.join("controlplane.log"))
                .is_ok_and(|log| log.contains("another control plane has taken over"))
    });
    assert!(other.0.try_wait().expect("it is ours").is_none(), "the other one goes on");
    drop(other);
    cluster.kill_controlplane();
    cluster.start_controlplane();
    assert_eq!(volumes(&cluster), ["disk"]);
}
