//! Who may come in where, what they are told, and what is written down of it; curl is the client.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tests::gateway::{Gateway, daemon, folder};
use tests::netns::{self, Held};

use crate::cluster::Cluster;

const PEOPLE: &str = "people-0123456789abcdef";
const NODES: &str = "nodes-0123456789abcdef";

/// What curl says: its exit code, the status, the body.
#[derive(Debug)]
struct Said {
    code: i32,
    status: u16,
    body: Value,
}

fn curl(words: &[&str]) -> Said {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"])
        .args(words)
        .output()
        .expect("curl is there");
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').expect("a status");
    let body = serde_json::from_str(body).unwrap_or(Value::Null);
    Said { code: output.status.code().unwrap_or(-1), status: status.parse().expect("a number"), body }
}

/// A change, by curl on the Unix socket.
fn change(cluster: &Cluster, request: &Value) -> Said {
    let (socket, body) = (cluster.socket().display().to_string(), request.to_string());
    let header = "Content-Type: application/json";
    curl(&["--unix-socket", &socket, "-H", header, "-d", &body, "http://localhost/v1/requests"])
}

fn tenant(name: &str, weight: u32) -> Value {
    json!({ "tenant_put": { "name": name, "vni": null, "weight": weight, "rules": [] } })
}

fn audit(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("controlplane/audit.log")).expect("an audit log");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// An address of this machine that is not loopback; loopback where there is no other.
fn elsewhere() -> IpAddr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    // Nothing is sent: this only chooses the address that would be used.
    let way = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    way.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

/// A control plane at every address of this machine, with TLS and tokens.
struct Guarded {
    folder: PathBuf,
    port: u16,
    _process: Held,
}

impl Guarded {
    fn start(test: &str) -> Guarded {
        let folder = folder(test);
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file");
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), elsewhere().to_string()];
        let certificate =
            CertificateParams::new(names).and_then(|params| params.self_signed(&key)).expect("signed");
        write("cert.pem", &certificate.pem());
        write("key.pem", &key.serialize_pem());
        write("people.token", &format!("{PEOPLE}\n"));
        write("nodes.token", &format!("{NODES}\n"));
        let at = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "directory = {:?}\n[listen]\nat = [\"0.0.0.0:0\"]\ncertificate = {:?}\nkey = {:?}\ntoken = {:?}\nnode_token = {:?}\n",
            at("controlplane"),
            at("cert.pem"),
            at("key.pem"),
            at("people.token"),
            at("nodes.token"),
        );
        write("controlplane.toml", &text);
        let mut process = Command::new(daemon().with_file_name("tidegate-controlplane"))
            .args(["run", "--config", &at("controlplane.toml")])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(folder.join("controlplane.log")).expect("a log"))
            .spawn()
            .expect("the control plane starts");
        let mut line = String::new();
        let out = process.stdout.take().expect("it is piped");
        BufReader::new(out).read_line(&mut line).expect("it says that it runs");
        let port = line.trim().rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("where is it? {line:?}"));
        Guarded { folder, port, _process: Held(process) }
    }

    fn ask(&self, path: &str, words: &[&str]) -> Said {
        let url = format!("https://{}:{}{path}", elsewhere(), self.port);
        let ca = self.folder.join("cert.pem").display().to_string();
        curl(&[&["--cacert", &ca, &url], words].concat())
    }
}

#[test]
fn curl_comes_in_from_elsewhere_only_with_tls_and_the_token_and_a_node_with_its_own() {
    let guarded = Guarded::start("guarded");
    let token = |token: &str| format!("Authorization: Bearer {token}");
    let bare = guarded.ask("/v1/status", &[]);
    assert_eq!(bare.status, 401, "{bare:?}");
    assert!(bare.body["error"].as_str().is_some_and(|said| said.contains("--token FILE")), "{bare:?}");
    assert_eq!(guarded.ask("/v1/status", &["-H", &token("people-0123456789abcdee")]).status, 401);
    assert_eq!(guarded.ask("/v1/status", &["-H", &token(NODES)]).status, 401, "nodes may only link");
    assert_eq!(guarded.ask("/v1/status", &["-H", &token(PEOPLE)]).body["volumes"], 0);
    // Versions 1.1 and 2 of HTTP are the same to it.
    assert_eq!(guarded.ask("/v1/tenants", &["--http2", "-H", &token(PEOPLE)]).status, 200);
    assert_eq!(guarded.ask("/v1/tenants", &["--http1.1", "-H", &token(PEOPLE)]).status, 200);
    let url = |scheme: &str| format!("{scheme}://{}:{}/v1/status", elsewhere(), guarded.port);
    let stranger = curl(&[&url("https"), "-H", &token(PEOPLE)]);
    assert_eq!((stranger.code, stranger.status), (60, 0), "nobody vouches for it: {stranger:?}");
    let plain = curl(&[&url("http"), "-H", &token(PEOPLE)]);
    assert!(plain.code != 0 && plain.status == 0, "without TLS: {plain:?}");
    // A node links over the same address, with its own token.
    let body = format!(
        "[nbd]\nlisten = [{:?}]\n[serve]\nmemory = \"72MiB\"\nhugepages = false\n\
         [controlplane]\naddress = \"https://{}:{}\"\ntoken = {:?}\nca = {:?}\nstate = {:?}\noperations = 1000\nbytes = \"1GB/s\"\n",
        guarded.folder.join("nbd.sock"),
        elsewhere(),
        guarded.port,
        guarded.folder.join("nodes.token"),
        guarded.folder.join("cert.pem"),
        guarded.folder.join("state"),
    );
    let node = Gateway::start(None, &guarded.folder, "one", &body);
    netns::until("the node is alive", || {
        guarded.ask("/v1/nodes/one", &["-H", &token(PEOPLE)]).body["state"] == "alive"
    });
    // What is done is written down with the address of who did it, and without secrets.
    let request = json!({ "command": tenant("blue", 1) }).to_string();
    let words = ["-H", &token(PEOPLE), "-H", "Content-Type: application/json", "-d", &request];
    assert_eq!(guarded.ask("/v1/requests", &words).status, 200);
    let lines = audit(&guarded.folder);
    assert_eq!(lines.len(), 1, "reading and being turned away change nothing: {lines:?}");
    assert!(
        lines[0]["peer"].as_str().is_some_and(|peer| peer.starts_with(&elsewhere().to_string())),
        "{lines:?}"
    );
    assert!(!lines[0].to_string().contains(PEOPLE));
    drop(node);
    std::fs::remove_dir_all(&guarded.folder).expect("the folder can be removed");
}

#[test]
fn a_control_plane_does_not_start_at_an_address_that_others_reach_without_tls_and_tokens() {
    let folder = folder("unguarded");
    let config = folder.join("controlplane.toml");
    let text = format!("directory = {:?}\n[listen]\nat = [\"0.0.0.0:0\"]\n", folder.join("controlplane"));
    std::fs::write(&config, text).expect("a configuration");
    let output = Command::new(daemon().with_file_name("tidegate-controlplane"))
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("set certificate, key, token and node_token"),
        "{said}"
    );
    assert!(!folder.join("controlplane").exists(), "it touched nothing");
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}

/// Server-sent events, as curl prints them.
struct Watching {
    curl: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Watching {
    fn start(cluster: &Cluster, query: &str, last: Option<u64>) -> Watching {
        let mut command = Command::new("curl");
        command.args(["--silent", "--no-buffer", "--max-time", "60", "--unix-socket"]).arg(cluster.socket());
        if let Some(last) = last {
            command.args(["-H", &format!("Last-Event-ID: {last}")]);
        }
        command.arg(format!("http://localhost/v1/watch{query}")).stdout(Stdio::piped());
        let mut curl = command.spawn().expect("curl is there");
        let lines = BufReader::new(curl.stdout.take().expect("it is piped")).lines();
        Watching { curl, lines }
    }

    /// The next event: its id and its data.
    fn next(&mut self) -> (u64, Value) {
        let (mut id, mut data, mut change) = (None, None, false);
        for line in &mut self.lines {
            let line = line.expect("curl prints text");
            match line.split_once(':') {
                Some(("id", value)) => id = value.trim().parse().ok(),
                Some(("event", value)) => change = value.trim() == "change",
                Some(("data", value)) => data = serde_json::from_str(value).ok(),
                // An empty line ends an event, one that begins with a colon keeps the connection alive.
                _ if data.is_some() => break,
                _ => {}
            }
        }
        assert!(change, "it is called a change");
        (id.expect("an id"), data.expect("data in JSON"))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

#[test]
fn a_watch_tells_changes_and_goes_on_where_it_was() {
    let mut cluster = Cluster::start("watch", 0);
    let mut watching = Watching::start(&cluster, "?prefix=tenant/&from=1", None);
    let (first, data) = watching.next();
    assert_eq!(data["changes"][0]["object"]["name"], "blue", "{data}");
    assert_eq!(data["revision"], first);
    assert_eq!(change(&cluster, &json!({ "command": tenant("red", 1) })).status, 200);
    let (second, data) = watching.next();
    assert_eq!(data["changes"][0]["object"]["name"], "red", "{data}");
    assert!(second > first);
    drop(watching);
    // What happens while nobody watches is told to who comes back, also by a control plane that was started again.
    assert_eq!(change(&cluster, &json!({ "command": tenant("red", 7) })).status, 200);
    cluster.kill_controlplane();
    cluster.start_controlplane();
    let removed = json!({ "command": { "tenant_delete": { "tenant": 2 } } });
    assert_eq!(change(&cluster, &removed).status, 200);
    let mut watching = Watching::start(&cluster, "?prefix=tenant/", Some(second));
    assert_eq!(watching.next().1["changes"][0]["object"]["weight"], 7);
    let (_, data) = watching.next();
    assert!(data["changes"][0]["key"].as_str().is_some_and(|key| key.starts_with("tenant/")), "{data}");
    assert_eq!(data["changes"][0]["object"], Value::Null, "it is gone");
    let socket = cluster.socket().display().to_string();
    let gone = curl(&["--unix-socket", &socket, "http://localhost/v1/watch?from=0"]);
    assert_eq!(gone.status, 410, "{gone:?}");
}

#[test]
fn watches_have_a_bound_and_those_that_leave_make_room() {
    let cluster = Cluster::start("watches", 0);
    let socket = cluster.socket();
    let all: Vec<Watching> =
        (0..64).map(|_| Watching::start(&cluster, "?prefix=tenant/&from=1", None)).collect();
    let refused = || {
        let words =
            ["--max-time", "1", "--unix-socket", &socket.display().to_string(), "http://localhost/v1/watch"];
        curl(&words)
    };
    netns::until("no more than 64", || refused().status == 429);
    assert!(refused().body["error"].as_str().is_some_and(|said| said.contains("end one")));
    drop(all);
    netns::until("room again", || refused().status == 200);
}

#[test]
fn of_two_who_change_the_same_one_is_told_to_read_again_and_all_is_written_down() {
    let cluster = Cluster::start("revisions", 0);
    let socket = cluster.socket().display().to_string();
    let read = || curl(&["--unix-socket", &socket, "http://localhost/v1/tenants/blue"]).body;
    let revision = read()["revision"].as_u64().expect("a revision");
    let expecting = |revision: u64, weight: u32, key: &str| json!({ "command": tenant("blue", weight), "expected_revision": revision, "idempotency_key": key });
    let before = audit(&cluster.folder).len();
    let first = change(&cluster, &expecting(revision, 2, "first"));
    assert_eq!(first.status, 200, "{first:?}");
    let second = change(&cluster, &expecting(revision, 3, "second"));
    assert_eq!(second.status, 409, "{second:?}");
    let said = second.body["error"].as_str().expect("a sentence");
    assert!(said.contains(&format!("it is at revision {}", revision + 1)), "{said}");
    assert_eq!(read()["weight"], 2);
    // The same again is answered the same; the same key for something else is not.
    let again = change(&cluster, &expecting(revision, 2, "first"));
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(change(&cluster, &expecting(revision, 4, "first")).status, 409);
    assert_eq!(read()["revision"], revision + 1);
    // A guard that is misspelt is no guard: it is refused.
    let misspelt = json!({ "command": tenant("blue", 9), "expected_revison": revision });
    let refused = change(&cluster, &misspelt);
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(
        refused.body["error"].as_str().is_some_and(|said| said.contains("expected_revison")),
        "{refused:?}"
    );
    assert_eq!(read()["weight"], 2);
    let lines = audit(&cluster.folder);
    let told: Vec<_> = lines[before..].iter().collect();
    let done = |line: &Value| line["outcome"].get("done").is_some();
    assert_eq!(
        told.iter().map(|line| done(line)).collect::<Vec<_>>(),
        [true, false, true, false],
        "{told:?}"
    );
    let own = std::fs::metadata(&cluster.folder).map(|folder| std::os::unix::fs::MetadataExt::uid(&folder));
    for line in told {
        assert_eq!(line["peer"], format!("uid {}", own.as_ref().expect("our folder")));
        assert!(line["at_ms"].as_u64().is_some_and(|at| at > 1_700_000_000_000));
        assert_eq!(line["asked"]["command"]["tenant_put"]["name"], "blue");
    }
}

#[test]
fn the_document_is_served_as_it_is_kept() {
    let cluster = Cluster::start("document", 0);
    let socket = cluster.socket().display().to_string();
    let served = curl(&["--unix-socket", &socket, "http://localhost/v1/openapi.json"]).body;
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let mut text = String::new();
    std::fs::File::open(kept).and_then(|mut file| file.read_to_string(&mut text)).expect("it is kept");
    assert_eq!(served, serde_json::from_str::<Value>(&text).expect("JSON"));
}
