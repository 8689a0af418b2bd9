//! Two data planes in namespaces of their own with a link of a known rate between them, and a host that reaches both
//! by links of its own, which are as fast as the machine.

use tests::netns::{Namespace, veth};

/// What a link lets through at once, so that it is as fast as it should be although timers are coarse.
const BURST: &str = "128kb";
/// What waits for the link, at most.
const LATENCY: &str = "200ms";

/// See the module's documentation.
pub struct Wire {
    /// Where hosts are.
    pub host: Namespace,
    nodes: [Namespace; 2],
}

impl Wire {
    /// Joins them; the link between the data planes carries so many megabits per second, each way.
    pub fn new(mbit_per_s: u64) -> Wire {
        let wire = Wire { host: Namespace::new(), nodes: [Namespace::new(), Namespace::new()] };
        let [one, two] = &wire.nodes;
        veth(one, "copies", two, "copies");
        for (at, node) in wire.nodes.iter().enumerate() {
            node.ip(&format!("addr add 10.77.0.{}/24 dev copies", at + 1));
            let rate = format!("{mbit_per_s}mbit");
            let words = ["root", "tbf", "rate", &rate, "burst", BURST, "latency", LATENCY];
            node.output(&[&["tc", "qdisc", "add", "dev", "copies"], &words[..]].concat());
            let name = format!("host{at}");
            veth(node, "hosts", &wire.host, &name);
            node.ip(&format!("addr add 10.77.{}.1/24 dev hosts", at + 1));
            wire.host.ip(&format!("addr add 10.77.{}.2/24 dev {name}", at + 1));
        }
        wire
    }

    /// Where the data plane of a place runs.
    pub fn node(&self, at: usize) -> &Namespace {
        &self.nodes[at]
    }

    /// Where it takes NBD clients: the other data plane.
    pub fn nbd(&self, at: usize) -> String {
        format!("10.77.0.{}:10809", at + 1)
    }

    /// Where it takes NVMe hosts.
    pub fn nvme(&self, at: usize) -> String {
        format!("10.77.{}.1:4420", at + 1)
    }
}
