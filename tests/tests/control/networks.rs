//! Rules of a tenant's network that the control plane gives a gateway, seen by stock hosts on both sides of it.

use std::path::Path;

use tests::gateway::Gateway;
use tests::lab::{HOST, HOST_MAC, Lab, PEER, PEER_MAC, gateway};
use tests::netns::isolated;

use crate::cluster::Cluster;

const TEST: &str = "a_gateway_has_the_rules_of_its_tenants_from_the_control_plane";

fn config(cluster: &Cluster) -> String {
    let follows = format!(
        "[controlplane]\naddress = \"unix:{}\"\nstate = {:?}\noperations = 1\nbytes = \"1MB/s\"\n",
        cluster.socket().display(),
        cluster.folder.join("state-gateway"),
    );
    follows + &gateway("vxlan", ("192.0.2.1", "192.0.2.2", 24), (HOST, HOST_MAC), (PEER, PEER_MAC))
}

fn reaches_peer(lab: &Lab) -> bool {
    let ping = lab.host.command("ping").args(["-c", "1", "-W", "1", PEER]).output();
    ping.expect("ping runs").status.success()
}

fn rules(folder: &Path, text: &str) -> String {
    let path = folder.join("rules.toml");
    std::fs::write(&path, text).expect("a file of rules");
    path.to_string_lossy().into_owned()
}

#[test]
fn a_gateway_has_the_rules_of_its_tenants_from_the_control_plane() {
    isolated(TEST, || {
        let mut cluster = Cluster::start("networks", 0);
        cluster.tidegate(&["tenant", "put", "blue", "--vni", "100"]);
        let lab = Lab::new("192.0.2.1", "192.0.2.2", 24);
        let body = config(&cluster);
        let start = |cluster: &Cluster| {
            let gateway = Gateway::start(Some(&lab.gateway), &cluster.folder, "gateway", &body);
            gateway.ports_up();
            gateway
        };
        let gateway = start(&cluster);
        cluster.until("the gateway is known", |cluster| cluster.alive() == 1);
        assert_eq!(cluster.tidegate(&["node", "get", "gateway"])["info"]["networks"][0], "blue");
        cluster.until("the hosts meet", |_| reaches_peer(&lab));

        cluster.tidegate(&["tenant", "put", "blue", "--rules", &drop_peer(&cluster)]);
        cluster.until("the rule holds", |_| !reaches_peer(&lab));
        let dropped = |gateway: &Gateway| {
            let drops = |worker: &agent::report::Worker| worker.drops.get("rule_drop").copied().unwrap_or(0);
            gateway.stats().workers.iter().map(drops).sum::<u64>()
        };
        assert!(dropped(&gateway) > 0, "it is counted as what it is: {:?}", gateway.stats().workers);
        // What is not said stays.
        cluster.tidegate(&["tenant", "put", "blue", "--weight", "2"]);
        let blue = cluster.tidegate(&["tenant", "get", "blue"]);
        assert_eq!((&blue["vni"], &blue["rules"][0]["to"]), (&100.into(), &PEER.into()), "{blue}");

        // Neither needs the other to go on.
        cluster.kill_controlplane();
        drop(gateway);
        let gateway = start(&cluster);
        cluster.until("the rule holds again", |_| !reaches_peer(&lab) && dropped(&gateway) > 0);
        cluster.start_controlplane();

        let none = rules(&cluster.folder, "");
        cluster.tidegate(&["tenant", "put", "blue", "--rules", &none]);
        cluster.until("the hosts meet again", |_| reaches_peer(&lab));

        // What cannot be right anywhere is refused at once, what cannot be right here is explained.
        let wrong = rules(&cluster.folder, &format!("[[rule]]\nto = \"{PEER}\"\naction = \"forward\"\n"));
        let (code, said) = cluster.try_tidegate(&["tenant", "put", "blue", "--rules", &wrong]).unwrap_err();
        assert!(
            code == 4 && said.contains("rule 1") && said.contains("forward needs a vtep"),
            "{code}: {said}"
        );
        cluster.tidegate(&["tenant", "put", "blue", "--vni", "101", "--rules", &drop_peer(&cluster)]);
        let id = cluster.tidegate(&["node", "get", "gateway"])["id"].to_string();
        let explained = |cluster: &Cluster| cluster.tidegate(&["explain", &format!("node/{id}")]).to_string();
        cluster
            .until("it is said why", |cluster| explained(cluster).contains("its vni is 101 there and 100"));
        assert!(reaches_peer(&lab), "what the tenant had before stays");
        cluster.tidegate(&["tenant", "put", "blue", "--vni", "100"]);
        cluster.until("the rules hold when the mistake is mended", |_| !reaches_peer(&lab));
        cluster.until("and nothing is refused", |cluster| !explained(cluster).contains("its vni is"));

        // A reload with the control plane's rules in place keeps them.
        gateway.rewrite("gateway", &body.replace("bytes = \"1MB/s\"\n", "bytes = \"1MB/s\"\n# again\n"));
        gateway.reload().expect("the same configuration");
        assert!(!reaches_peer(&lab), "they are still there");
        gateway.stop();
    });
}

/// The packets of the host to the peer are dropped.
fn drop_peer(cluster: &Cluster) -> String {
    rules(&cluster.folder, &format!("[[rule]]\nto = \"{PEER}\"\naction = \"drop\"\n"))
}
