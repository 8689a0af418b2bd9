//! Facts about veth pairs in a namespace of the test's own thread, with a `/sys` that shows it.

use std::process::Command;

use super::*;

fn run(words: &str) -> bool {
    let mut words = words.split_whitespace();
    Command::new(words.next().unwrap()).args(words).status().is_ok_and(|status| status.success())
}

/// Moves this thread into fresh network and mount namespaces; false, and a printed reason, without root.
fn enter() -> bool {
    // SAFETY: no memory is passed; only this thread changes its namespaces.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        println!("skipped: no right to make namespaces: {}", io::Error::last_os_error());
        return false;
    }
    assert!(run("mount --make-rprivate /") && run("mount -t sysfs sysfs /sys"));
    true
}

#[test]
fn a_peer_with_checksum_offload_is_named() {
    if !enter() {
        return;
    }
    assert!(run("ip link add a0 type veth peer name b0"));
    assert!(run("ip link set a0 up") && run("ip link set b0 up"));
    let interface = Interface::find("b0").unwrap();
    assert_eq!((interface.mtu_bytes, interface.mac.is_some()), (1500, true));
    let warning = interface.checksum_warning().unwrap();
    assert!(warning.contains("ethtool -K a0 tx off"), "{warning}");
    assert!(run("ethtool -K a0 tx off"));
    assert_eq!(interface.checksum_warning(), None);

    let (loopback, up) = Interface::ask("lo").unwrap();
    assert!(!up && loopback.mac.is_none());
    assert_eq!(loopback.checksum_warning(), None, "it has no driver to tell");
}

#[test]
fn a_peer_in_another_namespace_cannot_be_asked() {
    if !enter() {
        return;
    }
    // The child's namespace lives until its standard input ends.
    let mut child =
        Command::new("unshare").args(["-n", "cat"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let entered = format!("/proc/{}/ns/net", child.id());
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    while std::fs::read_link(&entered).is_ok_and(|other| other == own) {
        std::thread::yield_now();
    }
    assert!(run("ip link add b0 type veth peer name a0"));
    assert!(run(&format!("ip link set a0 netns {}", child.id())));
    let (interface, _) = Interface::ask("b0").unwrap();
    let warning = interface.checksum_warning().unwrap();
    assert!(warning.contains("another namespace"), "{warning}");
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn queues_are_those_that_both_directions_have() {
    if !enter() {
        return;
    }
    assert!(run("ip link add a0 numrxqueues 4 numtxqueues 2 type veth peer name b0"));
    let (interface, _) = Interface::ask("a0").unwrap();
    assert!(interface.check_queue(1).is_ok());
    let refused = interface.check_queue(2).unwrap_err();
    assert!(matches!(refused, OpenError::NoQueue { queue: 2, queues: 2, .. }), "{refused}");
    // A driver that cannot tell is asked by the bind.
    let (loopback, _) = Interface::ask("lo").unwrap();
    assert!(loopback.check_queue(0).is_ok());
    assert!(loopback.check_queue(super::super::QUEUES_MAX).is_err());
}
