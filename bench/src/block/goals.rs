//! What serving volumes promises, beside what was measured.

use crate::report::{Bound, Goal};

use super::servers::{Medium, Protocol};
use super::{BlockRow, Client, VOLUMES_MANY};

/// Each promise, whether or not it was measured; those that name another NVMe/TCP target only if one was given.
pub(super) fn goals(rows: &[BlockRow]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for medium in Medium::ALL {
        // On files we pass by the page cache, and others do not: no promise is made of that.
        if medium != Medium::File {
            goals.extend(["read", "write"].into_iter().flat_map(|rw| beside_nbd_servers(rows, medium, rw)));
        }
        goals.extend(beside_a_target(rows, medium));
    }
    for protocol in [Protocol::NvmeTcp, Protocol::Nbd] {
        goals.extend(scales(rows, protocol));
    }
    goals
}

/// The smallest of our ratios to the peers of some rows.
fn worst<'a>(rows: impl Iterator<Item = &'a BlockRow>) -> Option<f64> {
    rows.filter_map(|row| row.ratio).min_by(f64::total_cmp)
}

fn beside_nbd_servers(rows: &[BlockRow], medium: Medium, rw: &'static str) -> Vec<Goal> {
    let (name, nbd) = (medium.name(), Protocol::Nbd.name());
    let of = |client: Client| {
        rows.iter().filter(move |row| {
            (row.protocol, row.media, row.rw, row.client) == (nbd, name, rw, client.name())
                && row.block_bytes == 4096
        })
    };
    let goal =
        |says: String, measured, least| Goal { says, measured, bound: Bound::AtLeast(least), unit: "x" };
    let own = worst(of(Client::Load).filter(|row| row.depth == 32));
    let own =
        goal(format!("nbd {name} {rw} 4 KiB depth 32: IOPS by those of the best other server"), own, 3.0);
    // fio asks of volumes in memory alone.
    let fio = (medium == Medium::Memory).then(|| {
        let says = format!("nbd {name} {rw} 4 KiB, fio: IOPS by those of the best other server");
        goal(says, worst(of(Client::Fio)), 1.0)
    });
    std::iter::once(own).chain(fio).collect()
}

/// Only where another NVMe/TCP target was given.
fn beside_a_target(rows: &[BlockRow], medium: Medium) -> Vec<Goal> {
    let name = medium.name();
    let of = |rw: &'static str| {
        rows.iter().filter(move |row| {
            (row.protocol, row.media, row.rw) == (Protocol::NvmeTcp.name(), name, rw)
                && row.block_bytes == 4096
                && row.peer.is_some()
        })
    };
    let deep = |rw| {
        let ratio = worst(of(rw).filter(|row| row.depth > 1))?;
        let says = format!("nvme-tcp {name} {rw} 4 KiB: IOPS by the other target's");
        Some(Goal { says, measured: Some(ratio), bound: Bound::AtLeast(1.1), unit: "x" })
    };
    let single = of("read").find(|row| row.depth == 1).and_then(|row| {
        let says = format!("nvme-tcp {name} read 4 KiB depth 1: p50 by the other target's");
        let measured = Some(row.p50_us / row.peer_p50_us?);
        Some(Goal { says, measured, bound: Bound::AtMost(1.0), unit: "x" })
    });
    deep("read").into_iter().chain(deep("write")).chain(single).collect()
}

/// What an I/O costs with more connections and volumes, by what it costs with one.
fn scales(rows: &[BlockRow], protocol: Protocol) -> Vec<Goal> {
    let protocol = protocol.name();
    let find = |rw: &str, connections: u32, volumes: u32, used: u32| {
        rows.iter().find(|row| {
            (row.protocol, row.media, row.rw) == (protocol, Medium::Null.name(), rw)
                && (row.connections, row.volumes, row.volumes_used) == (connections, volumes, used)
                && row.block_bytes == 4096
                && (row.depth == 32 || rw == "idle")
                && row.client == Client::Load.name()
        })
    };
    let one = find("read", 1, 1, 1);
    let scaled = [
        ("64 connections", find("read", 64, 1, 1)),
        ("1,000 volumes attached, one in use", find("read", 1, VOLUMES_MANY, 1)),
        ("1,000 volumes in use", find("read", 1, VOLUMES_MANY, VOLUMES_MANY)),
    ];
    let mut goals: Vec<Goal> = scaled
        .into_iter()
        .map(|(what, many)| {
            let measured = many.zip(one).map(|(many, one)| many.user_ns / one.user_ns);
            let says = format!("{protocol}: user-space ns per I/O, {what}, by those of one");
            Goal { says, measured, bound: Bound::AtMost(1.2), unit: "x" }
        })
        .collect();
    goals.push(Goal {
        says: format!("{protocol}: share of a processor, 1,000 volumes attached, none in use"),
        measured: find("idle", 1, VOLUMES_MANY, 0).map(|row| row.cpu_share * 100.0),
        bound: Bound::AtMost(1.0),
        unit: "%",
    });
    goals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rw: &'static str, connections: u32, volumes: u32, volumes_used: u32) -> BlockRow {
        BlockRow {
            protocol: "nbd",
            client: "tidegate-load",
            media: "null",
            rw,
            block_bytes: 4096,
            depth: 32,
            connections,
            volumes,
            volumes_used,
            user_ns: 100.0,
            ..BlockRow::default()
        }
    }

    #[test]
    fn each_promise_is_held_against_its_row() {
        let peer = |name, ratio| BlockRow { peer: Some(name), ratio: Some(ratio), ..row("read", 1, 1, 1) };
        let many = |figure| BlockRow { user_ns: figure, ..row("read", 1, 1000, 1000) };
        let idle = BlockRow { cpu_share: 0.02, depth: 1, ..row("idle", 1, 1000, 0) };
        let rows = [peer("nbdkit", 4.0), peer("qemu-nbd", 2.9), many(119.0), idle];
        let all = goals(&rows);
        let measured: Vec<&Goal> = all.iter().filter(|goal| goal.measured.is_some()).collect();
        let of =
            |part: &str| measured.iter().find(|goal| goal.says.contains(part)).map(|goal| goal.is_kept());
        assert_eq!(of("best other server"), Some(false), "the best one counts");
        assert_eq!(of("1,000 volumes in use"), Some(true));
        assert_eq!(of("none in use"), Some(false));
        assert_eq!((measured.len(), all.len()), (3, 14));
    }

    #[test]
    fn a_promise_about_which_nothing_was_measured_is_not_kept() {
        let none = goals(&[]);
        assert!(none.iter().all(|goal| goal.measured.is_none() && !goal.is_kept()));
        let (table, are_kept) = crate::report::goals(&none);
        assert_eq!((table.matches("not measured").count(), are_kept), (none.len(), false));
        assert!(!table.contains("the other target"), "nobody has given one");
    }
}
