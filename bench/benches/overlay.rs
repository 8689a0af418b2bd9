//! Overlay: lookup by number of rules, encapsulation, decapsulation; nanoseconds per frame of 64 bytes.
//!
//! One element is one frame; batches of 32 whose frames come off the top of the pool, as in a worker's turn,
//! so that headers and metadata are in the first-level cache and the tables are what is cold. Destinations
//! are drawn uniformly from all rules. Filling the frames is not timed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use frame::{BATCH, Frame, Pool, Slab, SlabConfig};
use overlay::too_big::TooBig;
use overlay::{
    Action, Attachment, Config, Destination, Encapsulation, NeighbourLimits, Neighbours, Outcomes, PortId,
    Prefix, Processed, Remote, Rule, Source, Tables, Tenant, TenantId, Tunnel, Underlay, Verdict, VolumeId,
    Vtep, encapsulate, process_tenant, process_underlay,
};
use wire::{EtherType, Mac, Vni, arp, ethernet, ipv4, protocol};

const FRAME_BYTES: usize = 64;
const SERVICE: u16 = 3260;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const TENANT: PortId = PortId(1);
const UNDERLAY: PortId = PortId(9);

fn server(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0b00_0000 + number)
}

fn vtep_mac(node: u8) -> Mac {
    Mac([2, 0xff, 0, 0, 0, node])
}

fn vtep(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node)
}

/// Node 1 has the client and a rule per service; node 2 has the servers.
fn config(node: u8, encapsulation: Encapsulation, rules: u32) -> Config {
    let underlay = Underlay {
        ipv4: Some(Prefix { address: vtep(node), bits: 24 }),
        ..Underlay::ethernet(UNDERLAY, vtep_mac(node))
    };
    let peer = Vtep { ip: vtep(3 - node).into(), port: None };
    let client = Prefix::host(IpAddr::from(CLIENT));
    let servers = (0..rules).map(|number| Prefix::host(IpAddr::from(server(number))));
    let (sources, remotes, rules) = if node == 1 {
        let rule = |(number, prefix)| Rule {
            tenant: TenantId(1),
            destination: Destination::Ip(prefix),
            transport: None,
            destination_port: Some(SERVICE),
            source_port: None,
            action: Action::Forward { volume: Some(VolumeId(number)), vtep: peer },
        };
        let source = Source { ip: client, mac: Some(CLIENT_MAC) };
        (vec![source], vec![], (0..rules).zip(servers).map(rule).collect())
    } else {
        let remote = Remote { ip: client, mac: Some(CLIENT_MAC), vtep: peer };
        (servers.map(|ip| Source { ip, mac: Some(SERVER_MAC) }).collect(), vec![remote], vec![])
    };
    Config {
        underlays: vec![underlay],
        tenants: vec![Tenant {
            id: TenantId(1),
            vni: Vni::new(100).expect("24 bits"),
            encapsulation,
            underlay: UNDERLAY,
            attachments: vec![Attachment { port: TENANT, vlan: None, sources }],
            remotes,
        }],
        rules,
        ..Config::default()
    }
}

/// A UDP frame from the client to server 0.
fn template() -> Vec<u8> {
    let mut frame = vec![0; FRAME_BYTES];
    let ether = ethernet::Header { dst: SERVER_MAC, src: CLIENT_MAC, tag: None, ethertype: EtherType::IPV4 };
    let header = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol: protocol::UDP,
        src: CLIENT,
        dst: server(0),
        options: &[],
        payload_bytes: FRAME_BYTES - 34,
    };
    ether.emit(&mut frame).expect("fits");
    header.emit(&mut frame[14..]).expect("fits");
    frame[34..36].copy_from_slice(&1000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&SERVICE.to_be_bytes());
    frame[38..40].copy_from_slice(&30_u16.to_be_bytes());
    frame
}

/// Two gateways over one pool, and batches between them.
struct Lab {
    pool: Pool,
    client: Tables,
    server: Tables,
    neighbours: Neighbours,
    too_big: TooBig,
    outcomes: Outcomes,
    template: Vec<u8>,
    rules: u32,
    random: u64,
}

impl Lab {
    fn new(encapsulation: Encapsulation, rules: u32) -> Lab {
        let slab = SlabConfig { frames: 4096, jumbo_frames: 0, hugepages: true };
        let client = Tables::build(&config(1, encapsulation, rules), None).expect("valid");
        let neighbours = Neighbours::new(&client, NeighbourLimits::default());
        let mut lab = Lab {
            pool: Pool::new(&Slab::new(slab).expect("memory")),
            server: Tables::build(&config(2, encapsulation, rules), None).expect("valid"),
            client,
            neighbours,
            too_big: TooBig::new(),
            outcomes: Outcomes::default(),
            template: template(),
            rules,
            random: 1,
        };
        lab.introduce();
        lab
    }

    /// The peer asks for our address, which teaches us its own.
    fn introduce(&mut self) {
        let packet = arp::Packet {
            operation: arp::Operation::Request,
            sender_mac: vtep_mac(2),
            sender_ip: vtep(2),
            target_mac: Mac::ZERO,
            target_ip: vtep(1),
        };
        let mut bytes = vec![0; 60];
        let ether =
            ethernet::Header { dst: Mac::BROADCAST, src: vtep_mac(2), tag: None, ethertype: EtherType::ARP };
        ether.emit(&mut bytes).expect("fits");
        packet.emit(&mut bytes[14..]).expect("fits");
        let mut frame = self.pool.alloc().expect("a frame");
        self.pool.fill(&mut frame, &bytes);
        self.pool.meta_mut(&mut frame).ingress_port = UNDERLAY.0;
        match self.neighbours.process(&self.client, &mut self.pool, frame, 1) {
            Processed::Reply(frame) => self.pool.free(frame),
            Processed::Dropped(why) => panic!("{why:?}"),
        }
    }

    /// A batch of fresh frames to random servers (xorshift).
    fn batch(&mut self) -> Vec<Frame> {
        (0..BATCH)
            .map(|_| {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let dst = server((self.random >> 32) as u32 % self.rules);
                let mut frame = self.pool.alloc().expect("a frame");
                self.pool.fill(&mut frame, &self.template);
                self.pool.bytes_mut(&mut frame)[30..34].copy_from_slice(&dst.octets());
                frame
            })
            .collect()
    }

    fn classify(&mut self, batch: &mut [Frame]) {
        process_tenant(&self.client, &self.pool, TENANT, batch, &mut self.outcomes);
        assert_eq!(self.outcomes.verdicts[0], Verdict::Forward);
    }

    fn encapsulate(&mut self, batch: Vec<Frame>, sent: &mut Vec<Frame>) {
        let tunnel = Tunnel { trace: 0, now_ns: 1 };
        for frame in batch {
            let (tables, neighbours) = (&self.client, &mut self.neighbours);
            let _ = encapsulate(
                tables,
                neighbours,
                &mut self.too_big,
                &mut self.pool,
                frame,
                &tunnel,
                &mut |_, frame| sent.push(frame),
            );
        }
    }

    fn decapsulate(&mut self, batch: &mut [Frame]) {
        process_underlay(&self.server, &self.pool, UNDERLAY, batch, &mut self.outcomes);
        assert_eq!(self.outcomes.verdicts[0], Verdict::Deliver);
    }
}

/// Time that the steps of interest take over `iterations` batches.
fn timed(lab: &mut Lab, iterations: u64, steps: Steps) -> Duration {
    let mut spent = Duration::ZERO;
    let mut sent = Vec::with_capacity(BATCH);
    for _ in 0..iterations {
        let mut batch = lab.batch();
        let begin = Instant::now();
        lab.classify(&mut batch);
        let classified = begin.elapsed();
        let begin = Instant::now();
        lab.encapsulate(batch, &mut sent);
        let encapsulated = begin.elapsed();
        let begin = Instant::now();
        lab.decapsulate(&mut sent);
        let decapsulated = begin.elapsed();
        spent += match steps {
            Steps::Classify => classified,
            Steps::Encapsulate => encapsulated,
            Steps::Decapsulate => decapsulated,
        };
        sent.drain(..).for_each(|frame| lab.pool.free(frame));
    }
    spent
}

#[derive(Clone, Copy)]
enum Steps {
    Classify,
    Encapsulate,
    Decapsulate,
}

fn lookup(criterion: &mut Criterion) {
    for (name, steps) in [("classify", Steps::Classify), ("decapsulate", Steps::Decapsulate)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(BATCH as u64));
        for rules in [1, 1_000, 10_000, 100_000] {
            let mut lab = Lab::new(Encapsulation::Vxlan, rules);
            group.bench_function(BenchmarkId::new("rules", rules), |bencher| {
                bencher.iter_custom(|iterations| timed(&mut lab, iterations, steps));
            });
        }
        group.finish();
    }
}

fn envelope(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encapsulate");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, encapsulation) in [("vxlan", Encapsulation::Vxlan), ("geneve", Encapsulation::Geneve)] {
        let mut lab = Lab::new(encapsulation, 64);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| timed(&mut lab, iterations, Steps::Encapsulate));
        });
    }
    group.finish();
}

criterion_group!(benches, lookup, envelope);
criterion_main!(benches);
