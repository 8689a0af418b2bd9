//! What `tidegate volume attach` says, tried with clients that do what it says.

use std::net::SocketAddr;
use std::process::Command;

use tests::gateway::daemon;
use tests::netns::skip;

use crate::cluster::Cluster;

#[test]
fn a_host_reaches_a_volume_by_the_commands_that_are_shown() {
    let cluster = Cluster::start("attach", 2);
    cluster.volume("disk", "one");
    let attach = cluster.tidegate(&["volume", "attach", "disk"]);
    let paths = attach["paths"].as_array().expect("its paths");
    assert_eq!(paths[0]["node"], "one");
    assert_eq!(paths[0]["active"], true);
    let commands = |path: usize| {
        let commands = paths[path]["commands"].as_array().expect("commands").iter();
        commands.filter_map(|command| command.as_str()).collect::<Vec<_>>()
    };
    // NVMe hosts connect to the node that stands by too; it is the same subsystem there.
    let nqn = attach["nqn"].as_str().expect("a name");
    for path in 0..2 {
        let at: SocketAddr = cluster.nvme(path).parse().expect("an address");
        let connect = format!("nvme connect -t tcp -a {} -s {} -n {nqn}", at.ip(), at.port());
        assert!(commands(path).contains(&&*connect), "{connect}: {attach:#}");
    }
    let uri = format!("nvme+tcp://{}/{nqn}", cluster.nvme(0));
    let words = [&*uri, "--path", &*cluster.nvme(1), "--verify", "--requests", "1000"];
    let load = Command::new(daemon().with_file_name("tidegate-load")).args(words).output().expect("it runs");
    assert!(load.status.success(), "{}", String::from_utf8_lossy(&load.stderr));
    let fio = commands(0).into_iter().find(|command| command.starts_with("fio ")).expect("a command for fio");
    match Command::new("fio").arg("--enghelp").output() {
        Ok(help) if String::from_utf8_lossy(&help.stdout).lines().any(|line| line.trim() == "nbd") => {}
        _ => return skip("control attach", "fio has no engine for NBD; apt-get install fio"),
    }
    let done = Command::new("sh").args(["-c", &format!("{fio} --output-format=json")]).output().expect("sh");
    assert!(done.status.success(), "{fio}: {}", String::from_utf8_lossy(&done.stderr));
    // It may say something to people first.
    let json = done.stdout.iter().position(|octet| *octet == b'{').expect("something in JSON");
    let said: serde_json::Value = serde_json::from_slice(&done.stdout[json..]).expect("what fio says");
    assert_eq!(said["jobs"][0]["read"]["io_bytes"], 64 << 20);
    assert_eq!(said["jobs"][0]["error"], 0);
}
