//! An etcd of a test's own: Debian's, on free ports of loopback, with its files in a folder of the test.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What it says when it has a leader and answers clients.
const READY: &str = "serving client traffic";

/// See the module's documentation. It is killed with this.
pub struct EtcdServer {
    program: PathBuf,
    folder: PathBuf,
    /// Of clients, of other members.
    ports: [u16; 2],
    /// More words for it.
    words: Vec<String>,
    /// Whether clients come with TLS.
    tls: bool,
    process: Option<Child>,
}

impl EtcdServer {
    /// The program, if it is here.
    pub fn find() -> Option<PathBuf> {
        let path = std::env::var("PATH").unwrap_or_default();
        path.split(':').map(|folder| Path::new(folder).join("etcd")).find(|program| program.is_file())
    }

    /// One that answers.
    pub fn start(program: PathBuf, folder: &Path) -> EtcdServer {
        EtcdServer::with(program, folder, false, &[])
    }

    /// The same with more words.
    pub fn with(program: PathBuf, folder: &Path, tls: bool, words: &[&str]) -> EtcdServer {
        // Free now; etcd says so if somebody else takes one in between.
        let held = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
        let ports = held.each_ref().map(|held| held.local_addr().expect("it is bound").port());
        drop(held);
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        let folder = folder.to_owned();
        let mut server = EtcdServer { program, folder, ports, words, tls, process: None };
        server.go();
        server
    }

    /// Where clients come in.
    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.ports[0])
    }

    /// Sends it a signal, like `-STOP`.
    pub fn signal(&self, name: &str) {
        let id = self.process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().expect("procps").success());
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it is ours");
        process.wait().expect("it is ours");
    }

    /// Starts it, again if it was killed, and waits until it answers.
    pub fn go(&mut self) {
        let [clients, peers] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let clients = if self.tls { clients.replace("http:", "https:") } else { clients };
        let mut process = Command::new(&self.program)
            .args(["--name", "one", "--data-dir"])
            .arg(self.folder.join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("one={peers}")])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .args(&self.words)
            // Its packages for other machines ask to be told that this is meant.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts");
        let said = BufReader::new(process.stderr.take().expect("it is piped"));
        self.process = Some(process);
        let mut log =
            std::fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let (ready, is_ready) = mpsc::channel();
        // Keeps what it says, and ends with it.
        std::thread::spawn(move || {
            for line in said.lines() {
                let line = line.expect("etcd says text");
                writeln!(log, "{line}").expect("the log can be written");
                if line.contains(READY) {
                    // Nobody waits any more when it says so again.
                    let _ = ready.send(());
                }
            }
        });
        if let Err(why) = is_ready.recv_timeout(PATIENCE) {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            panic!("etcd does not come up: {why}: {log}");
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("etcd.log")
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}
