//! What nodes see and say of themselves, and what the control plane has done about it.

use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use tests::disk::{SmallDisk, turn_bit};
use tests::gateway::daemon;
use tests::netns::{Held, skip};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::cluster::{Cluster, NodeSettings};

const BLOCK: usize = 4096;

/// The operation that an event of this kind led to, when there is one.
fn led_to(cluster: &Cluster, kind: &str) -> Option<Value> {
    let events = cluster.tidegate(&["event", "list"]);
    let mut events = events.as_array().expect("a list").iter();
    let operation = events.find(|event| event["kind"] == kind)?["operation"].as_u64()?;
    Some(cluster.tidegate(&["operation", "get", &operation.to_string()]))
}

/// Waits for the end of what an event of this kind led to.
fn outcome(cluster: &Cluster, kind: &str) -> Value {
    let mut last = None;
    cluster.until(&format!("{kind} is dealt with"), |cluster| {
        last = led_to(cluster, kind).filter(|one| one["phase"] == "done" || one["phase"] == "failed");
        last.is_some()
    });
    last.expect("it came")
}

#[test]
fn damage_that_a_client_meets_has_its_volume_scrubbed() {
    let cluster = Cluster::private("damaged", 1);
    cluster.volume("disk", "one");
    let mut client = cluster.client(0, "disk").expect("it is served");
    let block = |number: u8| vec![number + 1; BLOCK];
    // What was not whole when a volume stopped is cut off, and only what is written later says that it was: so two flushes.
    for numbers in [0..8, 8..9] {
        for number in numbers {
            client.write(u64::from(number) * BLOCK as u64, &block(number)).expect("written");
        }
        assert_eq!(client.flush().expect("answered"), ErrorCode::OK);
    }
    turn_bit(&cluster.pool(0).join("volume-1"), &block(5));
    let read = (Command::READ, CommandFlags(0));
    client.send(read, 5 * BLOCK as u64, BLOCK as u32, &[]).expect("sent");
    assert_eq!(client.reply().expect("answered").error, ErrorCode::IO);
    // The scrub says which block it is, so that it can be restored.
    let scrub = outcome(&cluster, "damaged");
    assert_eq!(scrub["work"], "scrub", "{scrub}");
    let why = scrub["why"].as_str().unwrap_or_default();
    assert!(scrub["phase"] == "failed" && why.contains("block 5: checksum mismatch"), "{scrub}");
    // Restored, it is whole again.
    client.write(5 * BLOCK as u64, &block(5)).expect("written");
    assert_eq!(client.flush().expect("answered"), ErrorCode::OK);
    cluster.tidegate(&["volume", "scrub", "disk", "--wait"]);
}

#[test]
fn a_volume_whose_medium_is_full_says_so() {
    let mut cluster = Cluster::private("space-low", 1);
    let pool = match SmallDisk::mount(&cluster.pool(0), 160 << 20) {
        Ok(pool) => pool,
        Err(why) => return skip("a_volume_whose_medium_is_full_says_so", &why),
    };
    cluster.volume("disk", "one");
    let mut client = cluster.client(0, "disk").expect("it is served");
    let piece = vec![7; 256 << 10];
    let mut refused = false;
    for number in 0..(256 << 20) / piece.len() {
        let write = (Command::WRITE, CommandFlags(0));
        client.send(write, (number * piece.len()) as u64, piece.len() as u32, &piece).expect("sent");
        match client.reply().expect("answered").error {
            ErrorCode::OK => {}
            error => {
                assert_eq!(error, ErrorCode::NOSPC);
                refused = true;
                break;
            }
        }
    }
    assert!(refused, "256 MiB fit on 160");
    let expand = outcome(&cluster, "space_low");
    let why = expand["why"].as_str().unwrap_or_default();
    assert!(expand["phase"] == "failed" && why.contains("bytes left, and a volume grows by"), "{expand}");
    cluster.kill_node(0);
    drop(pool);
}

#[test]
fn a_volume_takes_room_when_it_is_told_to() {
    let cluster = Cluster::private("expand", 1);
    cluster.volume("disk", "one");
    let taken = || {
        let files = std::fs::read_dir(cluster.pool(0).join("volume-1")).expect("its files");
        let bytes = files.map(|file| file.expect("a file").metadata().expect("there").blocks() * 512);
        bytes.sum::<u64>()
    };
    let before = taken();
    cluster.tidegate(&["volume", "expand", "disk", "--wait"]);
    assert!(taken() >= before + (16 << 20), "{before} and then {}", taken());
}

/// Verified load at a rate, over both nodes.
fn load(cluster: &Cluster, volume: &str, iops: u32) -> Held {
    let uri = format!("nvme+tcp://{}/{}", cluster.nvme(0), cluster.nqn(volume));
    let words = ["--path", &*cluster.nvme(1), "--verify", "--read-back", "--seconds", "25", "--reads", "50"];
    let log = std::fs::File::create(cluster.folder.join(format!("load-{volume}.log"))).expect("a log");
    let program = daemon().with_file_name("tidegate-load");
    let mut command = std::process::Command::new(program);
    command.arg(&uri).args(words).args(["--rate", &iops.to_string()]);
    let both = log.try_clone().expect("a log");
    Held(command.stdout(both).stderr(log).spawn().expect("tidegate-load runs"))
}

#[test]
fn a_node_with_more_than_it_can_do_gives_a_volume_away() {
    let settings = NodeSettings { operations: 1_000, ..NodeSettings::default() };
    let cluster = Cluster::with("node-hot", 2, settings, "");
    for volume in ["quiet", "busy"] {
        cluster.volume(volume, "one");
        cluster.until("the other one stands by", |cluster| {
            let volume = cluster.tidegate(&["volume", "get", volume]);
            volume["state"] == "serving" && !volume["standby"].is_null()
        });
    }
    let mut loads = [load(&cluster, "quiet", 300), load(&cluster, "busy", 680)];
    let moved = outcome(&cluster, "node_hot");
    assert_eq!(moved["phase"], "done", "{moved}");
    assert_eq!(moved["work"]["move_node"]["at_once"], false, "{moved}");
    // Of the two the smaller one is enough.
    assert_eq!(cluster.tidegate(&["volume", "get", "quiet"])["head"]["node"], 2, "{moved}");
    assert_eq!(cluster.tidegate(&["volume", "get", "busy"])["head"]["node"], 1, "{moved}");
    for (load, volume) in loads.iter_mut().zip(["quiet", "busy"]) {
        let status = load.ended("tidegate-load");
        let said = std::fs::read_to_string(cluster.folder.join(format!("load-{volume}.log")));
        assert!(status.success(), "{volume}: {said:?}{}", cluster.logs());
    }
}
