//! `tidegate top`: one frame for programs, and a screen for people that leaves the terminal as it was.

use std::process::{Command, Stdio};

use tests::gateway::daemon;
use tests::netns::Held;

use crate::cluster::Cluster;

#[test]
fn one_frame_shows_nodes_policies_operations_and_volumes_with_credits() {
    let cluster = Cluster::start("top", 1);
    cluster.volume("disk", "one");
    cluster.tidegate(&[
        "volume",
        "limit",
        "disk",
        "--iops",
        "100",
        "--burst-iops",
        "5000",
        "--peak-iops",
        "3000",
    ]);
    let mut frame = String::new();
    cluster.until("the volume's credits are shown", |cluster| {
        frame = cluster.said(&["top", "--once"]);
        frame.lines().any(|line| line.contains(" disk ") && line.contains("5000"))
    });
    assert!(!frame.contains('\u{1b}'), "no terminal, no escapes: {frame:?}");
    let has = |words: &[&str]| frame.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(has(&["1 nodes", "1 volumes", "decisions/s", "reports/s"]), "{frame}");
    assert!(has(&["one", "alive"]), "{frame}");
    assert!(["scheduling", "leasing", "migration"].iter().all(|kind| has(&[kind, "native"])), "{frame}");
    assert!(frame.contains("no operation is open"), "{frame}");
}

#[test]
fn a_screen_is_drawn_again_and_again_and_the_terminal_is_as_it_was_after_q_and_after_ctrl_c() {
    let cluster = Cluster::start("screen", 0);
    let top = format!(
        "{} --server unix:{} top --interval 0.2",
        daemon().with_file_name("tidegate").display(),
        cluster.socket().display()
    );
    for (record, end) in [("typescript-q", "q"), ("typescript-c", "\u{3}")] {
        // `script` gives it a terminal, whose settings are compared by who has it before and after.
        let inside =
            format!("stty -g > before; {top}; echo ended $?; stty -g > after; cmp before after && echo same");
        let script = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &inside, record])
            .env("SHELL", "/bin/bash")
            .current_dir(&cluster.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("script is there");
        let mut script = Held(script);
        let seen = || std::fs::read_to_string(cluster.folder.join(record)).unwrap_or_default();
        cluster.until("three frames", |_| seen().matches("\u{1b}[Htidegate").count() >= 3);
        let mut keys = script.0.stdin.take().expect("it is piped");
        std::io::Write::write_all(&mut keys, end.as_bytes()).expect("keys are typed");
        let ended = script.ended("the screen");
        assert!(ended.success(), "{ended}: {}", seen());
        let seen = seen();
        assert!(
            seen.contains("\u{1b}[?1049l") && seen.contains("\u{1b}[?25h"),
            "the screen is back: {seen:?}"
        );
        assert!(seen.contains("ended 0") && seen.contains("same"), "{seen:?}");
    }
}
