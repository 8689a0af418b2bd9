//! The whole way of a frame: classification, segmentation, encapsulation and back, for any bytes that a
//! tenant or the underlay may send.

use std::net::{IpAddr, Ipv4Addr};

use frame::{Frame, GsoKind, Pool, Slab, SlabConfig};
use overlay::too_big::TooBig;
use overlay::*;
use wire::{Mac, Vni};

const TENANT: PortId = PortId(0);
const UNDERLAY: PortId = PortId(1);

struct Gateway {
    tables: Tables,
    neighbours: Neighbours,
    too_big: TooBig,
    pool: Pool,
    frames: usize,
    now_ns: u64,
}

impl Gateway {
    fn new() -> Gateway {
        let mut underlay = Underlay::ethernet(UNDERLAY, Mac([2, 0xff, 0, 0, 0, 1]));
        underlay.ipv4 = Some(Prefix { address: Ipv4Addr::new(192, 0, 2, 1), bits: 24 });
        underlay.outer_checksum = true;
        let host = |last| Prefix::host(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        let mac = |last| Some(Mac([2, 0, 0, 0, 0, last]));
        let vtep = Vtep { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)), port: None };
        let tenant = Tenant {
            id: TenantId(0),
            vni: Vni::new(100).expect("24 bits"),
            encapsulation: Encapsulation::Geneve,
            underlay: UNDERLAY,
            attachments: vec![Attachment {
                port: TENANT,
                vlan: None,
                sources: vec![Source { ip: host(1), mac: mac(1) }],
            }],
            remotes: vec![Remote { ip: host(2), mac: mac(2), vtep }],
        };
        let config = Config { underlays: vec![underlay], tenants: vec![tenant], ..Config::default() };
        let tables = Tables::build(&config, None).expect("it is right");
        let neighbours = Neighbours::new(&tables, NeighbourLimits::default());
        let slab = Slab::new(SlabConfig { frames: 1024, jumbo_frames: 8, hugepages: false }).expect("memory");
        let pool = Pool::new(&slab);
        Gateway { tables, neighbours, too_big: TooBig::new(), pool, frames: 0, now_ns: 0 }
    }

    /// A frame with these bytes; the first three choose how it claims to be cut.
    fn frame(&mut self, bytes: &[u8]) -> Option<(bool, Frame)> {
        let ([way, gso, mss], bytes) = bytes.split_first_chunk()?;
        let mut frame = if gso & 3 == 0 { self.pool.alloc()? } else { self.pool.alloc_jumbo()? };
        if !self.pool.fill(&mut frame, bytes) {
            self.pool.free(frame);
            return None;
        }
        let meta = self.pool.meta_mut(&mut frame);
        meta.gso = [GsoKind::None, GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::UdpL4][usize::from(gso & 3)];
        meta.gso_bytes = u16::from(*mss) * 8;
        if gso & 4 != 0 {
            meta.flags.set(frame::Flags::CSUM_PARTIAL);
            (meta.csum_start, meta.csum_offset) = (u16::from(gso >> 3) * 2, 16);
        }
        let tenant = way & 1 == 0;
        Some((tenant, frame))
    }

    fn carry(&mut self, tenant: bool, frame: Frame) {
        let mut outcomes = Outcomes::default();
        let mut batch = [frame];
        if tenant {
            process_tenant(&self.tables, &self.pool, TENANT, &mut batch, &mut outcomes);
        } else {
            process_underlay(&self.tables, &self.pool, UNDERLAY, &mut batch, &mut outcomes);
        }
        let [frame] = batch;
        let mut sent = 0;
        let mut send = |pool: &mut Pool, frame: Frame| {
            sent += 1;
            pool.free(frame);
        };
        match outcomes.verdicts[0] {
            Verdict::Forward => {
                let tunnel = Tunnel { trace: 1, now_ns: self.now_ns };
                let (tables, pool) = (&self.tables, &mut self.pool);
                let outcome = encapsulate(
                    tables,
                    &mut self.neighbours,
                    &mut self.too_big,
                    pool,
                    frame,
                    &tunnel,
                    &mut send,
                );
                if let Encapsulated::TooBig(Some(notice)) = outcome {
                    pool.free(notice);
                }
            }
            Verdict::Local if tenant => match responder::process(&self.tables, &mut self.pool, frame) {
                responder::Answer::Reply(frame) | responder::Answer::Trap(frame) => self.pool.free(frame),
                responder::Answer::Dropped(_) => {}
            },
            Verdict::Local => {
                let (tables, pool) = (&self.tables, &mut self.pool);
                if let Processed::Reply(frame) = self.neighbours.process(tables, pool, frame, self.now_ns) {
                    pool.free(frame);
                }
            }
            Verdict::Deliver | Verdict::Trap | Verdict::Drop(_) => self.pool.free(frame),
        }
    }

    fn tick(&mut self) {
        self.now_ns += 1_000_000_000;
        let (tables, pool) = (&self.tables, &mut self.pool);
        self.neighbours.dispatch(tables, pool, self.now_ns, &mut |pool, emitted| match emitted {
            Emitted::Generated(frame) | Emitted::Released(frame) | Emitted::Dropped(frame, _) => {
                pool.free(frame);
            }
        });
    }
}

/// Nothing panics, and every frame comes home.
pub fn pipeline(bytes: &[u8]) {
    use std::cell::RefCell;
    thread_local!(static GATEWAY: RefCell<Gateway> = RefCell::new(Gateway::new()));
    GATEWAY.with_borrow_mut(|gateway| {
        if let Some((tenant, frame)) = gateway.frame(bytes) {
            gateway.carry(tenant, frame);
            gateway.frames += 1;
        }
        gateway.tick();
        assert_eq!(frame::leaked(), 0, "after {} frames", gateway.frames);
        let held = gateway.neighbours.held();
        assert!(held <= 1024, "{held} frames wait for neighbours");
    });
}
