//! Volumes that the control plane makes larger while hosts use them.

use tests::gateway::full;
use tests::netns::{self, client};
use wire::nbd::transmission::{Command, CommandFlags, ErrorCode};

use crate::cluster::Cluster;
use crate::nvme::host::{ADMIN, Reply, Sgl, Sqe, Wish, identify, log_page};
use crate::nvme::{Host, PLAIN};

const MIB: u64 = 1 << 20;
const PAGE: usize = 4096;
/// Bits of the asynchronous event configuration: namespace attributes.
const NAMESPACES: u32 = 1 << 8;
/// Dword 0 of the notice: the log of changed namespaces.
const CHANGED: u64 = 0x04_00_02;

/// What Identify Namespace says of the namespace's size, in bytes.
fn bytes(admin: &mut Host) -> u64 {
    let page = admin.data(identify(9, 0, 1));
    u64::from_le_bytes(page[..8].try_into().expect("8 bytes")) * PAGE as u64
}

/// Writes, or reads what is there, in the last page of a volume of `bytes`; its status.
fn last_page(io: &mut Host, bytes: u64, page: Option<u8>) -> u16 {
    let lba = bytes / PAGE as u64 - 1;
    match page {
        Some(value) => {
            let write = Sqe::new(0x01, 3, 1, Sgl::Capsule(PAGE as u32)).range(lba, 1);
            io.status_of(write, &[value; PAGE])
        }
        None => io.status(Sqe::new(0x02, 4, 1, Sgl::Host(PAGE as u32)).range(lba, 1)),
    }
}

#[test]
fn hosts_of_both_nodes_see_a_volume_grow_by_the_command_line() {
    const TEST: &str = "hosts_of_both_nodes_see_a_volume_grow_by_the_command_line";
    let mut cluster = Cluster::start("resize", 2);
    cluster.tidegate(&[
        "volume", "create", "disk", "--size", "64MiB", "--tenant", "blue", "--on", "one", "--wait",
    ]);
    let nqn: &str = {
        let attach = cluster.tidegate(&["volume", "attach", "disk"]);
        attach["nqn"].as_str().expect("a name").to_owned().leak()
    };
    let port = |cluster: &Cluster, node: usize| {
        cluster.nvme(node).rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    };
    cluster.until("the other node shows it", |cluster| {
        let (_, reply) = Host::connect(port(cluster, 1), PLAIN, Wish { subsystem: nqn, ..ADMIN });
        matches!(reply, Reply::Done { status: 0, .. })
    });
    let mut head = Host::both(port(&cluster, 0), nqn);
    let mut standby = Host::both(port(&cluster, 1), nqn);
    let mut nbd = cluster.client(0, "disk").expect("it is served");
    nbd.write(0, &[1; PAGE]).expect("it is answered");
    let uri = format!("nbd+unix:///disk?socket={}", cluster.nbd(0).display());
    let mut size = 64 * MIB;
    for round in 0..if full() { 20 } else { 3 } {
        assert_eq!([bytes(&mut head.0), bytes(&mut standby.0)], [size; 2]);
        assert_eq!(last_page(&mut head.1, size + PAGE as u64, Some(9)), 0x080, "beyond its end");
        head.0.listen(NAMESPACES, 50);
        standby.0.listen(NAMESPACES, 50);
        size += 32 * MIB;
        cluster.tidegate(&["volume", "resize", "disk", "--size", &size.to_string(), "--wait"]);
        // Both are told, and find which namespace and how large it is; so does who asks without being told.
        for admin in [&mut head.0, &mut standby.0] {
            assert_eq!(admin.event(50), CHANGED, "round {round}");
            assert_eq!(admin.data(log_page(1, 4, 0, 4096))[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(bytes(admin), size);
        }
        assert_eq!(last_page(&mut head.1, size, Some(round as u8 + 1)), 0, "it can be used at once");
        assert_eq!(last_page(&mut standby.1, size, None), 0x302, "the other node has it still");
        if let Some(told) = client(TEST, "nbdinfo", &["--size", &uri]) {
            assert_eq!(told.trim(), size.to_string());
        }
    }
    // An NBD client keeps what it was told until it comes again.
    nbd.send((Command::READ, CommandFlags(0)), 64 * MIB, PAGE as u32, &[]).expect("it listens");
    assert_eq!(nbd.reply().expect("it answers").error, ErrorCode::INVAL);
    let mut page = [0; PAGE];
    nbd.read(0, &mut page).expect("its session goes on");
    assert_eq!(page, [1; PAGE]);
    let mut again = cluster.client(0, "disk").expect("it is served");
    again.read(size - PAGE as u64, &mut page).expect("within what it is told");
    let last = page;
    assert!(last[0] > 0 && last == [last[0]; PAGE]);
    // Smaller it does not become, and that changes nothing.
    let refused = cluster.try_tidegate(&["volume", "resize", "disk", "--size", "64MiB", "--wait"]);
    assert!(refused.is_err_and(|(_, said)| said.contains("cannot shrink")));
    // Whoever takes it over has the size that hosts were told.
    cluster.kill_node(0);
    let taken = netns::comes(|| last_page(&mut standby.1, size, None) == 0);
    assert!(taken, "the node that stands by serves it{}", cluster.logs());
    assert_eq!(bytes(&mut standby.0), size);
    let mut other = cluster.client(1, "disk").expect("it is served there");
    other.read(size - PAGE as u64, &mut page).expect("it is as large there");
    assert_eq!(page, last);
}
