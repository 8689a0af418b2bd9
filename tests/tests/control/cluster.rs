//! A control plane and data planes that share a directory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Pid;
use serde_json::Value;
use tests::gateway::{Gateway, daemon, folder};
use tests::netns::{self, Held};

use crate::client::Client;
use crate::wire::Wire;

/// See the module's documentation.
pub struct Cluster {
    pub folder: PathBuf,
    pub controlplane: Option<Held>,
    pub nodes: Vec<Option<Gateway>>,
    /// What the data plane of each place is called.
    pub names: Vec<String>,
    /// Where each place takes NVMe hosts.
    ports: Vec<u16>,
    /// What their configurations say.
    pub settings: NodeSettings,
    /// What is between them, where they are not all in the namespace of the test.
    pub wire: Option<Wire>,
}

/// What the configurations of the data planes say of their capacity and pool.
#[derive(Clone, Copy, Debug)]
pub struct NodeSettings {
    pub operations: u64,
    /// In the form of a configuration; a copy gets an eighth of it.
    pub bytes: &'static str,
    /// Whether all see the same directory.
    pub shared: bool,
}

impl Default for NodeSettings {
    fn default() -> NodeSettings {
        NodeSettings { operations: 100_000, bytes: "1GB/s", shared: true }
    }
}

/// What data planes are called at first.
const NAMES: [&str; 3] = ["one", "two", "three"];

impl Cluster {
    /// A running control plane with so many data planes, which it knows.
    pub fn start(test: &str, nodes: usize) -> Cluster {
        Cluster::with(test, nodes, NodeSettings::default(), "")
    }

    /// The same, but each data plane has a directory of its own.
    pub fn private(test: &str, nodes: usize) -> Cluster {
        Cluster::with(test, nodes, NodeSettings { shared: false, ..NodeSettings::default() }, "")
    }

    /// The same, and copies are made slowly: each gets an eighth of what a data plane offers.
    pub fn slow(test: &str, nodes: usize) -> Cluster {
        let settings = NodeSettings { shared: false, bytes: "80MB/s", ..NodeSettings::default() };
        Cluster::with(test, nodes, settings, "")
    }

    /// Two data planes, each with a directory of its own, joined by a link that carries what one copy may: an eighth of
    /// what they offer.
    pub fn wired(test: &str, settings: NodeSettings, wire: Wire) -> Cluster {
        Cluster::made(test, 2, NodeSettings { shared: false, ..settings }, "", Some(wire))
    }

    /// The same with other data planes, and more lines for the configuration of the control plane.
    pub fn with(test: &str, nodes: usize, settings: NodeSettings, lines: &str) -> Cluster {
        Cluster::made(test, nodes, settings, lines, None)
    }

    fn made(test: &str, nodes: usize, settings: NodeSettings, lines: &str, wire: Option<Wire>) -> Cluster {
        let mut cluster = Cluster {
            folder: folder(test),
            controlplane: None,
            nodes: Vec::new(),
            names: NAMES[..nodes].iter().map(|name| (*name).to_owned()).collect(),
            ports: free_ports(nodes),
            settings,
            wire,
        };
        let text = format!(
            "directory = {:?}\n[listen]\nat = [{:?}]\n{lines}",
            cluster.folder.join("controlplane"),
            cluster.socket()
        );
        std::fs::write(cluster.folder.join("controlplane.toml"), text).expect("a configuration");
        cluster.start_controlplane();
        for node in 0..nodes {
            cluster.nodes.push(None);
            cluster.start_node(node);
        }
        cluster.until("all data planes are alive", |cluster| cluster.alive() == nodes);
        cluster.tidegate(&["tenant", "put", "blue", "--vni", "7"]);
        cluster
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("cp.sock")
    }

    /// Starts the control plane, again if it was killed.
    pub fn start_controlplane(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("controlplane.log"))
            .expect("a log file");
        let child = Command::new(controlplane())
            .args(["run", "--config"])
            .arg(self.folder.join("controlplane.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the control plane starts");
        self.controlplane = Some(Held(child));
        self.until("the control plane answers", |cluster| cluster.try_tidegate(&["status"]).is_ok());
    }

    /// Starts a data plane, again if it was killed.
    pub fn start_node(&mut self, node: usize) {
        let name = self.names[node].clone();
        let body = format!(
            "[nbd]\nlisten = [{nbd:?}]\n{public}[serve]\nmemory = \"72MiB\"\nhugepages = false\n\
             [nvme]\nlisten = [\"{nvme}\"]\n{public}controller_first = {first}\ncontrollers = 1000\n\
             [controlplane]\naddress = \"unix:{socket}\"\nstate = {state:?}\n\
             operations = {operations}\nbytes = {bytes:?}\n\
             [[controlplane.pool]]\nname = \"default\"\ndirectory = {pool:?}\nshared = {shared}\ncapacity = \"1TiB\"\n",
            nbd = self.wire.as_ref().map_or_else(|| self.nbd(node), |wire| wire.nbd(node).into()),
            nvme = self.nvme(node),
            public = if self.wire.is_some() { "public = true\n" } else { "" },
            operations = self.settings.operations,
            bytes = self.settings.bytes,
            first = 1 + 1000 * node,
            socket = self.socket().display(),
            state = self.folder.join(format!("state-{name}")),
            pool = self.pool(node),
            shared = self.settings.shared,
        );
        let space = self.wire.as_ref().map(|wire| wire.node(node));
        self.nodes[node] = Some(Gateway::start(space, &self.folder, &name, &body));
    }

    /// A data plane that nobody knows yet, in the place of one that was killed.
    pub fn replace_node(&mut self, node: usize, name: String) {
        self.names[node] = name;
        self.start_node(node);
    }

    /// Kills a data plane with SIGKILL.
    pub fn kill_node(&mut self, node: usize) {
        let killed = self.nodes[node].take().expect("it runs");
        drop(killed);
    }

    /// Kills the control plane with SIGKILL.
    pub fn kill_controlplane(&mut self) {
        drop(self.controlplane.take().expect("it runs"));
    }

    /// Where a data plane takes NBD clients.
    pub fn nbd(&self, node: usize) -> PathBuf {
        self.folder.join(format!("nbd-{node}.sock"))
    }

    /// Where a data plane takes NVMe hosts.
    pub fn nvme(&self, node: usize) -> String {
        self.wire.as_ref().map_or_else(|| format!("127.0.0.1:{}", self.ports[node]), |wire| wire.nvme(node))
    }

    /// The data plane of a place.
    pub fn node(&self, node: usize) -> &Gateway {
        self.nodes[node].as_ref().expect("it runs")
    }

    /// The process of a data plane.
    pub fn pid(&self, node: usize) -> Pid {
        Pid::from_child(&self.node(node).process.0)
    }

    /// Where a data plane keeps volumes.
    pub fn pool(&self, node: usize) -> PathBuf {
        self.folder.join(if self.settings.shared { "volumes".to_owned() } else { format!("volumes-{node}") })
    }

    /// What a data plane remembers, as it stands on disk.
    pub fn book(&self, node: usize) -> Value {
        let path = self.folder.join(format!("state-{}", self.names[node])).join("told.json");
        std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// A client of a volume at a data plane, if that serves it.
    pub fn client(&self, node: usize, volume: &str) -> std::io::Result<Client> {
        let socket = std::os::unix::net::UnixStream::connect(self.nbd(node))?;
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        socket.set_write_timeout(Some(std::time::Duration::from_secs(20)))?;
        Client::new(Box::new(socket), volume)
    }

    /// Runs the command line; what it printed, in JSON, or what it said.
    pub fn try_tidegate(&self, words: &[&str]) -> Result<Value, (i32, String)> {
        let output = command(&self.socket()).args(["-o", "json"]).args(words).output();
        let output = output.expect("tidegate runs");
        if output.status.success() {
            // What was done may be said in words.
            Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
        } else {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err((output.status.code().unwrap_or(-1), said))
        }
    }

    /// Runs the command line, which must do what it is told.
    pub fn tidegate(&self, words: &[&str]) -> Value {
        self.try_tidegate(words)
            .unwrap_or_else(|(code, said)| panic!("{words:?}: {code}: {said}{}", self.logs()))
    }

    /// Runs the command line for people; what it printed.
    pub fn said(&self, words: &[&str]) -> String {
        let output = self.typed(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the command line for people.
    pub fn typed(&self, words: &[&str]) -> Output {
        command(&self.socket()).args(words).output().expect("tidegate runs")
    }

    /// Makes a volume and waits until it is served.
    pub fn volume(&self, name: &str, on: &str) {
        self.tidegate(&[
            "volume", "create", name, "--size", "256MiB", "--tenant", "blue", "--on", on, "--wait",
        ]);
    }

    /// By which name NVMe hosts know a volume.
    pub fn nqn(&self, volume: &str) -> String {
        let attach = self.tidegate(&["volume", "attach", volume]);
        attach["nqn"].as_str().expect("a name").to_owned()
    }

    /// Data planes that are alive.
    pub fn alive(&self) -> usize {
        let nodes = self.tidegate(&["node", "list"]);
        nodes.as_array().expect("a list").iter().filter(|node| node["state"] == "alive").count()
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, mut ready: impl FnMut(&Cluster) -> bool) {
        let came = netns::comes(|| ready(self));
        assert!(came, "not within {:?}: {what}{}", netns::PATIENCE, self.logs());
    }

    /// What the daemons said last.
    pub fn logs(&self) -> String {
        let last = |name: &str| {
            let text = std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(25).collect();
            format!("\n--- {name}\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        let nodes = self.names.iter().map(|name| last(&format!("{name}.log")));
        last("controlplane.log") + &nodes.collect::<String>()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.clear();
        self.controlplane = None;
        if !std::thread::panicking() {
            remove(&self.folder);
        }
    }
}

/// The control plane of the same build as this test, or the one that was built for it with other features.
pub fn controlplane() -> PathBuf {
    let beside = || daemon().with_file_name("tidegate-controlplane");
    let program = std::env::var_os("TIDEGATE_CONTROLPLANE").map_or_else(beside, PathBuf::from);
    assert!(program.exists(), "{} is not built: `cargo build -p server -p ctl`", program.display());
    program
}

/// The command line, for the control plane at a socket.
pub fn command(socket: &Path) -> Command {
    let mut command = Command::new(daemon().with_file_name("tidegate"));
    command.arg("--server").arg(format!("unix:{}", socket.display()));
    command
}

/// Free now; a daemon says so if somebody else takes one in between.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("it is bound").port()).collect()
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("the test's folder can be removed");
}
