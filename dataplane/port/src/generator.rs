//! The built-in tenant: UDP frames of a few flows at a given rate, for trying a gateway without a network.
//!
//! A [`NullPort`] with a pace. It reads the clock once per burst, which the null port, made for measuring,
//! does not.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use frame::{BATCH, Batch, Pool};
use wire::{EmitError, EtherType, Mac, checksum, ethernet, ipv4, protocol, udp};

use crate::null::{NullPort, NullSpec};
use crate::{OpenError, Port, PortCaps, PortCounters, PortError};

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeneratorSpec {
    /// Frames to hand out, round robin; see [`udp_frame`].
    pub templates: Vec<Vec<u8>>,
    /// Frames per second; `None` is as many as are asked for.
    pub rate_pps: Option<u64>,
}

/// Two ends of a generated flow.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Source and destination MAC.
    pub macs: ([u8; 6], [u8; 6]),
    /// Source and destination address.
    pub addresses: (Ipv4Addr, Ipv4Addr),
    /// Source and destination UDP port.
    pub ports: (u16, u16),
}

/// A paced [`NullPort`].
#[derive(Debug)]
pub(crate) struct Generator {
    null: NullPort,
    rate_pps: Option<u64>,
    started: Instant,
    /// Frames handed out since `started`.
    sent: u64,
}

/// A UDP frame of `frame_bytes` with right checksums, at least its headers.
pub fn udp_frame(flow: &Flow, frame_bytes: usize) -> Result<Vec<u8>, EmitError> {
    let ethernet = ethernet::Header {
        dst: Mac(flow.macs.1),
        src: Mac(flow.macs.0),
        tag: None,
        ethertype: EtherType::IPV4,
    };
    let at_ip = ethernet.header_bytes();
    let at_udp = at_ip + ipv4::HEADER_BYTES;
    let mut frame = vec![0_u8; frame_bytes.max(at_udp + udp::HEADER_BYTES)];
    let udp_bytes = frame.len() - at_udp;
    ethernet.emit(&mut frame)?;
    let ip = ipv4::Header {
        dscp: 0,
        ecn: 0,
        ident: 0,
        dont_fragment: true,
        ttl: 64,
        protocol: protocol::UDP,
        src: flow.addresses.0,
        dst: flow.addresses.1,
        options: &[],
        payload_bytes: udp_bytes,
    };
    ip.emit(&mut frame[at_ip..])?;
    let (src_port, dst_port) = flow.ports;
    udp::Header { src_port, dst_port, payload_bytes: udp_bytes - udp::HEADER_BYTES }
        .emit(&mut frame[at_udp..])?;
    let pseudo = checksum::pseudo_v4(ip.src, ip.dst, protocol::UDP, udp_bytes as u32);
    udp::fill_checksum(&mut frame[at_udp..], pseudo);
    Ok(frame)
}

pub(crate) fn open(spec: &GeneratorSpec) -> Result<Box<dyn Port>, OpenError> {
    let copy_bytes = spec.templates.iter().map(Vec::len).max().unwrap_or(0);
    let null = NullPort::open(&NullSpec { templates: spec.templates.clone(), copy_bytes })?;
    Ok(Box::new(Generator { null, rate_pps: spec.rate_pps, started: Instant::now(), sent: 0 }))
}

impl Generator {
    /// Frames that are due now, at most a batch. What a sleeping worker missed is not made up for.
    fn due(&mut self) -> usize {
        let Some(rate) = self.rate_pps else { return BATCH };
        let elapsed_ns = self.started.elapsed().as_nanos();
        let should = (elapsed_ns * u128::from(rate) / 1_000_000_000) as u64;
        let behind = should.saturating_sub(self.sent);
        if behind > rate.max(BATCH as u64) {
            self.sent = should - BATCH as u64;
        }
        behind.min(BATCH as u64) as usize
    }
}

impl Port for Generator {
    fn rx_burst(&mut self, pool: &mut Pool, out: &mut Batch) -> Result<usize, PortError> {
        let due = self.due();
        if due == 0 {
            return Ok(0);
        }
        let count = self.null.generate(pool, out, due);
        self.sent += count as u64;
        Ok(count)
    }

    fn tx_burst(&mut self, pool: &mut Pool, batch: &mut Batch) -> Result<usize, PortError> {
        self.null.tx_burst(pool, batch)
    }

    fn flush(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        self.null.flush(pool)
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn has_input(&self) -> bool {
        self.rate_pps.is_none()
    }

    fn caps(&self) -> PortCaps {
        self.null.caps()
    }

    fn counters(&self) -> PortCounters {
        self.null.counters()
    }

    fn close(self: Box<Self>, pool: &mut Pool) {
        Box::new(self.null).close(pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_frame_parses_with_right_checksums() {
        let flow = Flow {
            macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            addresses: (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)),
            ports: (10_000, 9),
        };
        for frame_bytes in [42, 64, 1400] {
            let frame = udp_frame(&flow, frame_bytes).expect("fits");
            assert_eq!(frame.len(), frame_bytes);
            let ip = ipv4::View::parse(&frame[14..]).expect("valid IPv4");
            assert!(ip.checksum_ok());
            let pseudo = checksum::pseudo_v4(ip.src(), ip.dst(), ip.protocol(), ip.payload().len() as u32);
            assert_eq!(pseudo.bytes(ip.payload()).folded(), 0xffff);
        }
    }
}
