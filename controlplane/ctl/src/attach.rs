//! `tidegate volume attach`: what a host does to reach a volume.

use std::net::SocketAddr;
use std::time::Duration;

use contract::{Live, Node, NodeId, Volume, VolumeId};
use serde::Serialize;

use crate::ask::{Asker, Failure, print};

/// How often a node's report is looked at, and how long from one look to the next.
const LOOKS: u32 = 15;
const LOOK: Duration = Duration::from_millis(200);

/// How a volume is reached.
#[derive(Serialize)]
struct Attach {
    volume: String,
    /// The subsystem that NVMe hosts connect to; none where it is served without NVMe.
    nqn: Option<String>,
    paths: Vec<Path>,
}

/// A node through which it is reached.
#[derive(Serialize)]
struct Path {
    node: String,
    /// It answers here; otherwise NVMe hosts keep it as a path for when the other node is lost.
    active: bool,
    commands: Vec<String>,
}

/// Prints the commands.
pub async fn run(asker: &Asker, volume: &str) -> Result<(), Failure> {
    let volume: Volume = asker.one("volumes", volume).await?;
    let Some(head) = volume.head else {
        let why = format!("no node serves {}; `tidegate explain {}` says why", volume.name, volume.id);
        return Err(Failure::Other(why));
    };
    let node = async |id: NodeId| asker.one::<Node>("nodes", &id.0.to_string()).await;
    let active = node(head.node).await?;
    let offers_nvme = active.info.addresses.iter().any(|address| address.starts_with("nvme-tcp:"));
    let mut said = None;
    // A volume that was just made is named in its node's next report.
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK).await;
        }
        said = nqn(asker, &active, volume.id).await?;
        if said.is_some() || !offers_nvme {
            break;
        }
    }
    if offers_nvme && said.is_none() {
        let why = format!(
            "node {} does not report {}; `tidegate node get {}` shows it",
            active.info.name, volume.name, active.info.name
        );
        return Err(Failure::Other(why));
    }
    let mut paths = vec![path(&active, true, &volume, said.as_deref())];
    if let Some(standby) = volume.standby {
        paths.push(path(&node(standby).await?, false, &volume, said.as_deref()));
    }
    let attach = Attach { volume: volume.name.to_string(), nqn: said, paths };
    if asker.json { asker.json(&attach) } else { print(&text(&attach)) }
}

/// What its node calls it for NVMe hosts.
async fn nqn(asker: &Asker, node: &Node, volume: VolumeId) -> Result<Option<String>, Failure> {
    let live: Live = asker.client.get("/v1/live").await?;
    let reports = live.nodes.get(node.info.name.as_str()).map_or(&[][..], |node| &node.volumes);
    let report = reports.iter().find(|report| report.volume == volume);
    Ok(report.map(|report| report.nqn.clone()).filter(|nqn| !nqn.is_empty()))
}

fn path(node: &Node, active: bool, volume: &Volume, nqn: Option<&str>) -> Path {
    let reach = |address: &String| commands(address, volume.name.as_str(), nqn, active);
    let commands = node.info.addresses.iter().flat_map(reach).collect();
    Path { node: node.info.name.to_string(), active, commands }
}

/// What a host runs to reach a volume at one address of its node.
fn commands(address: &str, volume: &str, nqn: Option<&str>, active: bool) -> Vec<String> {
    let Some((scheme, at)) = address.split_once("://") else { return Vec::new() };
    let socket: Option<SocketAddr> = at.parse().ok();
    match (scheme, socket, active) {
        ("nvme-tcp", Some(at), _) => {
            let connect = |nqn| format!("nvme connect -t tcp -a {} -s {} -n {nqn}", at.ip(), at.port());
            nqn.map(connect).into_iter().collect()
        }
        ("nbd", Some(at), true) => vec![
            format!("nbd-client {} {} -N {volume} /dev/nbd0", at.ip(), at.port()),
            by_uri(&format!("nbd://{at}/{volume}")),
        ],
        ("nbds", _, true) => vec![by_uri(&format!("nbds://{at}/{volume}"))],
        ("nbd+unix" | "nbds+unix", _, true) => {
            let Some((_, socket)) = at.split_once("?socket=") else { return Vec::new() };
            let mut commands = vec![by_uri(&format!("{scheme}:///{volume}?socket={socket}"))];
            if scheme == "nbd+unix" {
                commands.insert(0, format!("nbd-client -unix {socket} -N {volume} /dev/nbd0"));
            }
            commands
        }
        _ => Vec::new(),
    }
}

/// For hosts that attach in user space: fio, qemu-img, qemu and nbdcopy take the same URI.
fn by_uri(uri: &str) -> String {
    format!("fio --name=try --ioengine=nbd --uri='{uri}' --rw=randread --bs=4k --iodepth=16 --size=64M")
}

fn text(attach: &Attach) -> String {
    let mut out = String::new();
    for path in &attach.paths {
        let role =
            if path.active { "serves it" } else { "stands by; connect too, and it is used when needed" };
        out += &format!("# node {} {role}\n", path.node);
        path.commands.iter().for_each(|command| out += &format!("{command}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::commands;

    #[test]
    fn each_protocol_has_its_command() {
        let nqn = Some("nqn.2014-08.org.nvmexpress:uuid:1");
        let one = |address: &str, nqn, active| commands(address, "disk", nqn, active).into_iter().next();
        let nvme = "nvme connect -t tcp -a fd00::2 -s 4420 -n nqn.2014-08.org.nvmexpress:uuid:1";
        assert_eq!(one("nvme-tcp://[fd00::2]:4420", nqn, false).as_deref(), Some(nvme));
        assert_eq!(one("nvme-tcp://10.0.0.2:4420", None, true), None);
        let nbd = "nbd-client 10.0.0.2 10809 -N disk /dev/nbd0";
        assert_eq!(one("nbd://10.0.0.2:10809", None, true).as_deref(), Some(nbd));
        // A standby answers NVMe hosts only.
        assert_eq!(one("nbd://10.0.0.2:10809", nqn, false), None);
        let unix = commands("nbd+unix:///?socket=/run/nbd.sock", "disk", None, true);
        assert_eq!(unix[0], "nbd-client -unix /run/nbd.sock -N disk /dev/nbd0");
        assert!(unix[1].contains("--uri='nbd+unix:///disk?socket=/run/nbd.sock'"), "{}", unix[1]);
    }
}
