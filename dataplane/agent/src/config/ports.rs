//! From a `[[port]]` to the driver's specification.

use std::net::IpAddr;

use engine::port::PortSpec;
use engine::port::faults::FaultSpec;
use engine::port::generator::{Flow, GeneratorSpec, udp_frame};
use engine::port::null::NullSpec;
use engine::port::packet::PacketSpec;
use engine::port::pcap::PcapSpec;
use engine::port::record::RecordSpec;
use engine::port::udp::UdpSpec;
use engine::port::xdp::XdpSpec;

use super::file::{Driver, File, Port};
use super::lower::{LowerError, mac, prefix};

const RECORD_BYTES_MAX: u64 = 64 << 20;
const HELD_FRAMES_MAX: usize = 1024;
/// Flows that a generator makes, at most: one template each.
const FLOWS_MAX: u32 = 65_536;

/// The workers that poll a port.
pub(super) fn workers(port: &Port, place: &str, count: usize) -> Result<Vec<usize>, LowerError> {
    let wrong = |what: String| Err(LowerError::Key { place: place.to_owned(), what });
    let polling = match (port.worker, port.workers.as_slice()) {
        (Some(_), [_, ..]) => return wrong("worker and workers are both given; keep one of them".into()),
        (worker, []) => vec![worker.unwrap_or(0)],
        (None, several) => several.to_vec(),
    };
    if let Some(none) = polling.iter().find(|worker| **worker >= count) {
        let are = if count == 1 { "is 1 worker".to_owned() } else { format!("are {count} workers") };
        return wrong(format!("worker {none} is named, but there {are}, counted from 0"));
    }
    if polling.len() == 1 {
        return Ok(polling);
    }
    let mut sorted = polling.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return wrong("workers names one of them twice".into());
    }
    match port.driver {
        Driver::AfXdp => {}
        Driver::AfPacket if port.fanout_group.is_some() => {}
        Driver::AfPacket => {
            return wrong(
                "several workers share an interface by fanout_group; add a number that nothing else uses in \
                 this network namespace, for example fanout_group = 1"
                    .into(),
            );
        }
        _ => return wrong("only af_xdp and af_packet ports can have several workers".into()),
    }
    if port.record.is_some() {
        return wrong("a port with several workers cannot be recorded: they would share one file".into());
    }
    Ok(polling)
}

/// The input that a port must have for itself, in words.
pub(super) fn exclusive(spec: &PortSpec) -> Option<String> {
    match spec {
        PortSpec::Xdp(spec) => Some(format!("queue {} of {}", spec.queue, spec.interface)),
        // The kernel chooses another port for each socket that asks for port 0.
        PortSpec::Udp(spec) if spec.bind.port() != 0 => Some(format!("listen = \"{}\"", spec.bind)),
        PortSpec::Faults(_, inner) | PortSpec::Record(_, inner) => exclusive(inner),
        _ => None,
    }
}

/// What the worker that polls share number `share` of a port opens.
pub(super) fn share(spec: &PortSpec, share: u32) -> PortSpec {
    match spec {
        PortSpec::Xdp(first) => {
            let queue = first.queue.saturating_add(share);
            PortSpec::Xdp(XdpSpec { queue, ..first.clone() })
        }
        PortSpec::Faults(faults, inner) => {
            let seed = faults.seed.wrapping_add(share.into());
            PortSpec::Faults(FaultSpec { seed, ..faults.clone() }, Box::new(self::share(inner, share)))
        }
        other => other.clone(),
    }
}

pub(super) fn spec(file: &File, port: &Port) -> Result<PortSpec, LowerError> {
    let place = format!("port \"{}\"", port.name);
    let missing =
        |key: &str| LowerError::Key { place: place.clone(), what: format!("this driver needs {key}") };
    fits_driver(port, &place)?;
    let mut spec = match port.driver {
        Driver::AfXdp => {
            let mut spec = XdpSpec::new(port.interface.as_deref().ok_or_else(|| missing("interface"))?);
            spec.queue = port.queue.unwrap_or(0);
            spec.ring_frames = port.ring_frames.unwrap_or(spec.ring_frames);
            spec.busy_poll_frames = port.busy_poll_frames.unwrap_or(0);
            PortSpec::Xdp(spec)
        }
        Driver::AfPacket => {
            let interface = port.interface.clone().ok_or_else(|| missing("interface"))?;
            let ring_frames = port.ring_frames.unwrap_or(1024);
            PortSpec::Packet(PacketSpec { interface, ring_frames, fanout_group: port.fanout_group })
        }
        Driver::Udp => {
            let bind = port.listen.ok_or_else(|| missing("listen"))?;
            // The worker tells the port its peers when it has its tables.
            PortSpec::Udp(UdpSpec { bind, peers: Vec::new(), dscp: 0 })
        }
        Driver::Generator => PortSpec::Generator(generator(file, port, &place)?),
        Driver::Sink => PortSpec::Null(NullSpec::default()),
        Driver::Pcap => PortSpec::Pcap(PcapSpec {
            replay: port.replay.clone(),
            loops: port.loops.unwrap_or(1),
            paced: port.paced.unwrap_or(false),
            record: None,
            record_bytes_max: RECORD_BYTES_MAX,
        }),
    };
    engine::port::check(&spec)
        .map_err(|error| LowerError::Key { place: place.clone(), what: error.to_string() })?;
    if let Some(faults) = &port.faults {
        let parts = [faults.loss, faults.duplicate, faults.reorder, faults.corrupt, faults.delay];
        if !parts.iter().all(|part| (0.0..=1.0).contains(part)) {
            return Err(LowerError::Key { place, what: "the probabilities of faults are 0 to 1".into() });
        }
        let faults = FaultSpec {
            seed: faults.seed,
            loss: faults.loss,
            duplicate: faults.duplicate,
            reorder: faults.reorder,
            corrupt: faults.corrupt,
            delay: faults.delay,
            delay_ns: faults.delay_by.map_or(1_000_000, |delay| delay.0),
            held_frames_max: HELD_FRAMES_MAX,
        };
        spec = PortSpec::Faults(faults, Box::new(spec));
    }
    if let Some(record) = &port.record {
        let bytes_max = record.limit.map_or(RECORD_BYTES_MAX, |limit| limit.0);
        spec = PortSpec::Record(RecordSpec { file: record.file.clone(), bytes_max }, Box::new(spec));
    }
    Ok(spec)
}

/// Refuses a key that the port's driver has no use for.
fn fits_driver(port: &Port, place: &str) -> Result<(), LowerError> {
    use Driver::{AfPacket, AfXdp, Generator, Pcap, Udp};
    let keys: [(&str, bool, &[Driver]); 12] = [
        ("interface", port.interface.is_some(), &[AfXdp, AfPacket]),
        ("queue", port.queue.is_some(), &[AfXdp]),
        ("ring_frames", port.ring_frames.is_some(), &[AfXdp, AfPacket]),
        ("busy_poll_frames", port.busy_poll_frames.is_some(), &[AfXdp]),
        ("fanout_group", port.fanout_group.is_some(), &[AfPacket]),
        ("listen", port.listen.is_some(), &[Udp]),
        ("frame_bytes", port.frame_bytes.is_some(), &[Generator]),
        ("flows", port.flows.is_some(), &[Generator]),
        ("rate_pps", port.rate_pps.is_some(), &[Generator]),
        ("replay", port.replay.is_some(), &[Pcap]),
        ("loops", port.loops.is_some(), &[Pcap]),
        ("paced", port.paced.is_some(), &[Pcap]),
    ];
    let useless = keys.iter().find(|(_, given, drivers)| *given && !drivers.contains(&port.driver));
    useless.map_or(Ok(()), |(key, ..)| {
        let what = format!("this driver has no use for {key}; remove it");
        Err(LowerError::Key { place: place.to_owned(), what })
    })
}

/// UDP frames from the first source of the tenant attached to this port to its first remote.
fn generator(file: &File, port: &Port, place: &str) -> Result<GeneratorSpec, LowerError> {
    let key = |what: &str| LowerError::Key { place: place.to_owned(), what: what.to_owned() };
    let attached = file.tenant.iter().find_map(|tenant| {
        let attachment = tenant.attachments.iter().find(|attachment| attachment.port == port.name)?;
        Some((attachment.sources.first()?, tenant.remotes.first()?))
    });
    let (source, remote) =
        attached.ok_or_else(|| key("a generator needs a tenant with a source on this port and a remote"))?;
    let source_mac = source.mac.as_deref().ok_or_else(|| key("the generator's source needs a mac"))?;
    let remote_mac = remote.mac.as_deref().ok_or_else(|| key("the generator's remote needs a mac"))?;
    let frame_bytes = port.frame_bytes.unwrap_or(64);
    if !(64..=3400).contains(&frame_bytes) {
        return Err(key("frame_bytes is 64 to 3400"));
    }
    let flows = port.flows.unwrap_or(1);
    if !(1..=FLOWS_MAX).contains(&flows) {
        return Err(key("flows is 1 to 65536"));
    }
    let (IpAddr::V4(src), IpAddr::V4(dst)) =
        (prefix(place, &source.ip)?.address, prefix(place, &remote.ip)?.address)
    else {
        return Err(key(
            "the generator makes IPv4; give the tenant's first source and remote IPv4 addresses",
        ));
    };
    let (source_mac, remote_mac) = (mac(place, source_mac)?, mac(place, remote_mac)?);
    let templates = (0..flows).map(|number| {
        let flow = Flow {
            macs: (source_mac.0, remote_mac.0),
            addresses: (src, dst),
            ports: (10_000 + (number % 50_000) as u16, 9),
        };
        udp_frame(&flow, frame_bytes)
    });
    let templates = templates.collect::<Result<_, _>>().map_err(|error| key(&error.to_string()))?;
    Ok(GeneratorSpec { templates, rate_pps: port.rate_pps })
}
