//! The gateway against peers that we did not write: the kernel's vxlan device, tshark's dissectors.

use tests::gateway::{Gateway, folder, full};
use tests::lab::{HOST, HOST_MAC, Lab, PEER, PEER_MAC, gateway};
use tests::netns::{Namespace, isolated, veth};
use tests::traffic::{WRONG, capture, copy, dissect, end};

fn kernel_vxlan(name: &str, ours: &str, theirs: &str, bits: u8) {
    let place = folder(name);
    let lab = Lab::new(ours, theirs, bits);
    let gateway = Gateway::start(
        Some(&lab.gateway),
        &place,
        "gateway",
        &gateway("vxlan", (ours, theirs, bits), (HOST, HOST_MAC), (PEER, PEER_MAC)),
    );
    gateway.ports_up();
    let file = place.join("underlay.pcapng");
    let capturing = capture(&lab.peer, "under0", &file);
    lab.host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
    lab.peer.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", HOST]);
    let bytes: u64 = if full() { 1 << 30 } else { 64 << 20 };
    copy(&lab.host, &lab.peer, PEER, 5001, bytes);
    copy(&lab.peer, &lab.host, HOST, 5002, bytes);
    end(capturing);
    let family = if ours.contains(':') { "ipv6" } else { "ip" };
    let from_us = format!("{family}.src == {ours} && vxlan.vni == 100");
    let carried = dissect(&file, &from_us, &["frame.len"]);
    assert!(carried.len() > 100, "the capture holds our tunnel: {} packets", carried.len());
    let wrong = dissect(
        &file,
        &format!("{family}.src == {ours} && ({WRONG})"),
        &["frame.number", "_ws.expert.message"],
    );
    assert!(wrong.is_empty(), "malformed or with a bad checksum: {wrong:?} of {}", file.display());
    let report = gateway.stats();
    assert!(report.workers.iter().all(|worker| worker.balanced), "every record balances: {report:?}");
    gateway.stop();
    std::fs::remove_dir_all(place).expect("the folder can be removed");
}

#[test]
fn kernel_vxlan_device_is_a_peer_over_ipv4() {
    isolated("kernel_vxlan_device_is_a_peer_over_ipv4", || {
        kernel_vxlan("vxlan4", "192.0.2.1", "192.0.2.2", 24);
    });
}

#[test]
fn kernel_vxlan_device_is_a_peer_over_ipv6() {
    isolated("kernel_vxlan_device_is_a_peer_over_ipv6", || {
        kernel_vxlan("vxlan6", "2001:db8::1", "2001:db8::2", 64);
    });
}

#[test]
fn geneve_between_two_gateways_carries_its_option() {
    isolated("geneve_between_two_gateways_carries_its_option", || {
        let place = folder("geneve");
        let [host, a, b, server] = std::array::from_fn(|_| Namespace::new());
        veth(&host, "eth0", &a, "tenant0");
        veth(&server, "eth0", &b, "tenant0");
        veth(&a, "under0", &b, "under0");
        for (space, ip, mac) in [(&host, HOST, HOST_MAC), (&server, PEER, PEER_MAC)] {
            space.ip(&format!("link set eth0 address {mac}"));
            space.ip(&format!("addr add {ip}/24 dev eth0"));
        }
        a.ip("link set under0 mtu 1600");
        b.ip("link set under0 mtu 1600");
        let (near, far) = ((HOST, HOST_MAC), (PEER, PEER_MAC));
        let one = Gateway::start(
            Some(&a),
            &place,
            "a",
            &gateway("geneve", ("192.0.2.1", "192.0.2.2", 24), near, far),
        );
        let two = Gateway::start(
            Some(&b),
            &place,
            "b",
            &gateway("geneve", ("192.0.2.2", "192.0.2.1", 24), far, near),
        );
        one.ports_up();
        two.ports_up();
        let file = place.join("underlay.pcapng");
        let capturing = capture(&b, "under0", &file);
        host.output(&["ping", "-c", "3", "-W", "10", "-i", "0.2", PEER]);
        copy(&host, &server, PEER, 5001, 16 << 20);
        copy(&server, &host, HOST, 5002, 16 << 20);
        end(capturing);
        let options = dissect(&file, "geneve && ip.src == 192.0.2.1", &["geneve.option.class", "geneve.vni"]);
        assert!(options.len() > 100, "the capture holds our tunnel: {} packets", options.len());
        assert!(
            options.iter().all(|line| line.to_lowercase().contains("ff54")),
            "every packet carries the option: {:?}",
            options.iter().find(|line| !line.to_lowercase().contains("ff54"))
        );
        let wrong = dissect(&file, WRONG, &["frame.number", "_ws.expert.message"]);
        assert!(wrong.is_empty(), "malformed or with a bad checksum: {wrong:?} of {}", file.display());
        one.stop();
        two.stop();
        std::fs::remove_dir_all(place).expect("the folder can be removed");
    });
}
