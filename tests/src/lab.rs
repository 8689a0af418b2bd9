//! The set-up that most end-to-end tests share: a tenant's host, a gateway, and a kernel as the peer.

use crate::netns::{Namespace, veth};

/// A tenant's host, a gateway, and a node with a kernel vxlan device.
#[derive(Debug)]
pub struct Lab {
    /// The tenant's host: [`HOST`] on `eth0`.
    pub host: Namespace,
    /// The gateway's place: `tenant0` towards the host, `under0` towards the peer.
    pub gateway: Namespace,
    /// The node with the vxlan device `vx0`, [`PEER`], on its `under0`.
    pub peer: Namespace,
}

/// The host's address.
pub const HOST: &str = "10.0.0.1";
/// The peer's address.
pub const PEER: &str = "10.0.0.2";
/// The host's MAC.
pub const HOST_MAC: &str = "02:00:00:00:00:01";
/// The peer's MAC.
pub const PEER_MAC: &str = "02:00:00:00:00:02";

impl Lab {
    /// Joins the three: the gateway has the underlay address `ours`, the peer `theirs`, in a prefix of `bits`.
    ///
    /// # Panics
    /// When `ip` fails, with what it said.
    pub fn new(ours: &str, theirs: &str, bits: u8) -> Lab {
        let lab = Lab { host: Namespace::new(), gateway: Namespace::new(), peer: Namespace::new() };
        veth(&lab.host, "eth0", &lab.gateway, "tenant0");
        veth(&lab.gateway, "under0", &lab.peer, "under0");
        for (space, name) in [(&lab.gateway, "under0"), (&lab.peer, "under0")] {
            space.ip(&format!("link set {name} mtu 1600"));
        }
        lab.host.ip(&format!("link set eth0 address {HOST_MAC}"));
        lab.host.ip(&format!("addr add {HOST}/24 dev eth0"));
        let nodad = if theirs.contains(':') { " nodad" } else { "" };
        lab.peer.ip(&format!("addr add {theirs}/{bits} dev under0{nodad}"));
        lab.peer.ip(&format!(
            "link add vx0 address {PEER_MAC} type vxlan id 100 local {theirs} remote {ours} dstport 4789 dev under0"
        ));
        lab.peer.ip(&format!("addr add {PEER}/24 dev vx0"));
        lab.peer.ip("link set vx0 mtu 1500 up");
        lab
    }
}

/// The configuration of a gateway between `tenant0` and `under0`: its side of the underlay, its tenant's host, and the host
/// at the far end.
pub fn gateway(
    encapsulation: &str,
    (ours, theirs, bits): (&str, &str, u8),
    (local, local_mac): (&str, &str),
    (remote, remote_mac): (&str, &str),
) -> String {
    format!(
        r#"
[[port]]
name = "tenant"
driver = "af_packet"
interface = "tenant0"
[[port]]
name = "uplink"
driver = "af_packet"
interface = "under0"
[[underlay]]
port = "uplink"
addresses = ["{ours}/{bits}"]
[[tenant]]
name = "blue"
vni = 100
encapsulation = "{encapsulation}"
attachments = [{{ port = "tenant", sources = [{{ ip = "{local}", mac = "{local_mac}" }}] }}]
remotes = [{{ ip = "{remote}", mac = "{remote_mac}", vtep = "{theirs}" }}]
"#
    )
}
