//! The balance of decision D18 in every record, while a worker is fed random and damaged frames of two
//! tenants that use the same addresses.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::idle::IdleParams;
use engine::{Node, Plan, PortPlan, PortRole, Snapshot, Throttle, WorkerPlan};
use frame::SlabConfig;
use overlay::{Attachment, Config, PortId, Prefix, Remote, Source, Tables, Tenant, TenantId, Underlay, Vtep};
use port::PortSpec;
use port::generator::{Flow, udp_frame};
use port::null::NullSpec;
use tests::gateway::full;
use tests::netns::PATIENCE;
use wire::{Mac, Vni};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

fn tenant(number: u16, port: PortId, underlay: PortId) -> Tenant {
    let mac = |last| Some(Mac([2, 0, 0, 0, number as u8, last]));
    let vtep = Vtep { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), port: None };
    Tenant {
        id: TenantId(number),
        vni: Vni::new(100 + u32::from(number)).expect("24 bits"),
        encapsulation: overlay::Encapsulation::Vxlan,
        underlay,
        attachments: vec![Attachment {
            port,
            vlan: None,
            sources: vec![Source { ip: Prefix::host(HOST.into()), mac: mac(1) }],
        }],
        remotes: vec![Remote { ip: Prefix::host(PEER.into()), mac: mac(2), vtep }],
    }
}

/// Frames of a tenant, most of them damaged: flipped bytes, cut short, other addresses.
fn templates(number: u8, seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..4096_u32)
        .map(|flow| {
            let ends = Flow {
                macs: ([2, 0, 0, 0, number, 1], [2, 0, 0, 0, number, 2]),
                addresses: (HOST, PEER),
                ports: (1024 + flow as u16, 9),
            };
            let mut frame = udp_frame(&ends, 60 + (random() % 1400) as usize).expect("it fits");
            for _ in 0..random() % 4 {
                let at = (random() % 64) as usize % frame.len();
                frame[at] ^= random() as u8;
            }
            if random() % 4 == 0 {
                frame.truncate(1 + (random() % 60) as usize);
            }
            frame
        })
        .collect()
}

#[test]
fn every_record_balances_under_random_frames() {
    let (one, two, uplink) = (PortId(0), PortId(1), PortId(2));
    let port = |id: PortId, role, templates: Vec<Vec<u8>>| PortPlan {
        id,
        name: format!("port{}", id.0),
        role,
        worker: 0,
        spec: PortSpec::Null(NullSpec { templates, copy_bytes: 2048 }),
    };
    let plan = Plan {
        slab: SlabConfig { frames: 4096, jumbo_frames: 0, hugepages: false },
        workers: vec![WorkerPlan { cpu: None }],
        ports: vec![
            port(one, PortRole::Tenant, templates(0, 11)),
            port(two, PortRole::Tenant, templates(1, 12)),
            port(uplink, PortRole::Underlay, Vec::new()),
        ],
        trap_port: None,
        volumes_max: 16,
        serve: None,
    };
    let mut underlay = Underlay::ethernet(uplink, Mac([2, 0, 0, 0, 9, 9]));
    underlay.ipv4 = Some(Prefix { address: Ipv4Addr::new(192, 0, 2, 1), bits: 24 });
    let config = Config {
        underlays: vec![underlay],
        tenants: vec![tenant(0, one, uplink), tenant(1, two, uplink)],
        ..Config::default()
    };
    let tables = Arc::new(Tables::build(&config, None).expect("it is right"));
    let snapshot = Snapshot {
        version: 1,
        tables,
        throttle: Throttle::default(),
        served: Throttle::default(),
        idle: IdleParams::default(),
    };
    let node = Node::start(plan, snapshot).expect("it starts");
    let wanted: u64 = if full() { 10_000_000 } else { 1_000_000 };
    let mut records = 0_u64;
    let end = Instant::now() + PATIENCE;
    let mut enough = || {
        node.counters().iter().all(|record| {
            records += 1;
            assert!(record.turn.balanced(), "record {records}: {:?}", record.turn);
            record.turn.rx >= wanted
        })
    };
    while !enough() {
        assert!(Instant::now() < end, "not enough frames passed within {} s", PATIENCE.as_secs());
        let death = node.deaths().recv_timeout(Duration::from_millis(5));
        assert!(death.is_err(), "{death:?}");
    }
    let last = node.stop();
    let turn = last[0].turn;
    assert!(turn.balanced(), "the last record: {turn:?}");
    assert_eq!((turn.parked, turn.in_flight), (0, 0), "nothing stays behind: {turn:?}");
    assert!(turn.dropped > 0 && records > 10, "{records} records, {turn:?}");
    assert_eq!(frame::leaked(), 0);
}
