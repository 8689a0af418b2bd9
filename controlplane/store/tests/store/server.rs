//! An etcd of a test's own: Debian's, on free ports of loopback, with its files in a folder of the test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module's documentation. It is killed with this.
pub struct EtcdServer {
    program: PathBuf,
    folder: PathBuf,
    /// Of clients, of other members, of who asks how it is.
    ports: [u16; 3],
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
        let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
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
        let [clients, peers, asked] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let clients = if self.tls { clients.replace("http:", "https:") } else { clients };
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let process = Command::new(&self.program)
            .args(["--name", "one", "--data-dir"])
            .arg(self.folder.join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("one={peers}"), "--listen-metrics-urls", &asked])
            .args(["--logger", "zap", "--log-outputs", "stderr"])
            .args(&self.words)
            // Its packages for other machines ask to be told that this is meant.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        self.process = Some(process);
        let began = Instant::now();
        while !self.is_well() {
            let ended = self.process.as_mut().expect("it runs").try_wait().expect("it is ours");
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "etcd does not come up: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.join("etcd.log")
    }

    /// Whether it answers and has a leader, by its own words.
    fn is_well(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.ports[2]))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok(said)
        };
        ask().is_ok_and(|said| said.contains("\"health\":\"true\""))
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}
