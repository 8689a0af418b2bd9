//! The program as a person and a supervisor see it: messages, exit codes, signals, sockets left behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Nothing that is waited for takes longer, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes with the test, with a configuration in it.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let place = Place(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&place.0).unwrap();
        place.write(&place.text("off"));
        place
    }

    /// A data plane without privileges, with one tenant behind a sink.
    fn text(&self, metrics: &str) -> String {
        format!(
            r#"
            [node]
            name = "gw"
            control_socket = "{}"
            metrics = "{metrics}"
            [frames]
            count = 1024
            jumbo_count = 16
            hugepages = false
            [[port]]
            name = "tenant"
            driver = "sink"
            [[port]]
            name = "uplink"
            driver = "udp"
            listen = "127.0.0.1:0"
            [[underlay]]
            port = "uplink"
            addresses = ["127.0.0.1/8"]
            [[tenant]]
            name = "blue"
            vni = 100
            attachments = [{{ port = "tenant", sources = [{{ ip = "10.0.0.1" }}] }}]
            remotes = [{{ ip = "10.0.0.2", vtep = "127.0.0.2" }}]
            [[volume]]
            name = "disk one"
            tenant = "blue"
            server = "10.0.0.2:9"
            [[volume]]
            name = "log"
            tenant = "blue"
            server = "10.0.0.2:10"
            "#,
            self.socket().display()
        )
    }

    fn write(&self, text: &str) {
        std::fs::write(self.config(), text).unwrap();
    }

    /// Replaces a part of the configuration.
    fn change(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from}");
        self.write(&text.replace(from, to));
    }

    fn config(&self) -> PathBuf {
        self.0.join("dataplane.toml")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn program(args: &[&str], paths: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-dataplane"));
    command.args(args).args(paths).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str], paths: &[&Path]) -> Output {
    program(args, paths).output().unwrap()
}

/// Standard output of a call that succeeds.
fn right(args: &[&str], paths: &[&Path]) -> String {
    let output = output(args, paths);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a call that fails with exit code 1.
fn wrong(args: &[&str], paths: &[&Path]) -> String {
    let output = output(args, paths);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A running data plane; killed when dropped.
struct Running {
    child: Child,
    ready: String,
    log: Receiver<String>,
}

impl Running {
    fn start(place: &Place) -> Running {
        let mut child = program(&["run", "--config"], &[&place.config()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = lines(child.stdout.take().unwrap());
        let log = lines(child.stderr.take().unwrap());
        let Ok(ready) = out.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            panic!("not ready: {:?}", log.try_iter().collect::<Vec<_>>());
        };
        Running { child, ready, log }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.child.id())]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for a line of the log.
    fn logged(&self, words: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(_) => panic!("waited in vain for {words:?} in the log"),
            }
        }
    }

    /// Waits for the end, which closes the log.
    fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_line) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("still running"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            // The test may have seen enough.
            let _ = send.send(line);
        }
    });
    lines
}

/// What an HTTP request to a loopback address is answered.
fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: tidegate\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn check_says_what_is_right_and_what_is_wrong() {
    let place = Place::new();
    let config = place.config();
    let said = right(&["check", "--config"], &[&config]);
    assert!(
        said.ends_with("is right: 1 worker, 2 ports, 1 tenant, 0 rules, 2 volumes, 0 groups, 0 exports\n"),
        "{said}"
    );
    place.change("jumbo_count", "jumbo_cuont");
    let said = wrong(&["check", "--config"], &[&config]);
    assert!(said.contains("unknown field `jumbo_cuont`"), "{said}");
    assert!(said.contains("did you mean `jumbo_count`?"), "{said}");
    place.change("jumbo_cuont", "jumbo_count");
    place.change("port = \"tenant\"", "port = \"tennant\"");
    let said = wrong(&["check", "--config"], &[&config]);
    assert!(said.contains("there is no port \"tennant\"; did you mean \"tenant\"?"), "{said}");
    let said = wrong(&["check", "--config"], &[&place.0.join("nothing.toml")]);
    assert!(said.contains("cannot read") && said.contains("nothing.toml"), "{said}");
    assert_eq!(output(&["chekc"], &[]).status.code(), Some(2), "a wrong call is not a wrong file");
}

#[test]
fn a_daemon_that_is_not_there_is_told() {
    let place = Place::new();
    for command in ["stats", "reload"] {
        let said = wrong(&[command, "--socket"], &[&place.socket()]);
        assert!(said.contains("no data plane answers on") && said.contains("is it running"), "{said}");
    }
}

#[test]
fn stats_and_reload_answer() {
    let place = Place::new();
    let (socket, running) = (place.socket(), Running::start(&place));
    assert!(running.ready.starts_with("gw is running: 1 worker on cpu any, 2 ports"), "{}", running.ready);
    assert!(running.ready.contains("metrics off"), "{}", running.ready);
    let table = right(&["stats", "--socket"], &[&socket]);
    for word in ["WORKER", "PORT", "VOLUME", "tenant", "uplink", "disk one", "log"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(!table.contains('\u{1b}'), "no escapes in a pipe: {table}");
    let some = right(&["stats", "--volumes", "disk o", "--socket"], &[&socket]);
    assert!(some.contains("disk one") && !some.contains("\nlog ") && some.contains("1 shown"), "{some}");
    let json = right(&["stats", "-o", "json", "--socket"], &[&socket]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["node"], "gw");
    assert_eq!(json["workers"][0]["balanced"], true);
    assert_eq!(json["volumes_total"], 2);

    place.change("vni = 100", "vni = 101");
    let said = right(&["reload", "--socket"], &[&socket]);
    assert!(said.starts_with("version ") && said.ends_with(" runs\n"), "{said}");
    place.change("vni = 101", "vni = 16777216");
    let said = wrong(&["reload", "--socket"], &[&socket]);
    assert!(said.contains("the largest is 16777215"), "{said}");
    place.change("vni = 16777216", "vni = 100");
    place.change("count = 1024", "count = 2048");
    let said = wrong(&["reload", "--socket"], &[&socket]);
    assert!(said.contains("[frames] differs from what runs; that needs a restart"), "{said}");
}

#[test]
fn hangup_reloads_and_the_log_says_how_it_went() {
    let place = Place::new();
    let running = Running::start(&place);
    place.change("vni = 100", "vni = 102");
    running.signal("HUP");
    running.logged("configuration reloaded");
    place.change("vni = 102", "vni = ");
    running.signal("HUP");
    running.logged("the configuration was not reloaded");
}

#[test]
fn what_was_asked_for_is_no_warning() {
    let place = Place::new();
    let running = Running::start(&place);
    let line = running.logged("frames live in ordinary pages");
    assert!(line.contains(" INFO ") && line.contains("as configured"), "{line}");
}

#[test]
fn a_second_start_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let _running = Running::start(&place);
    let said = wrong(&["run", "--config"], &[&place.config()]);
    assert!(said.contains("a data plane is already running on"), "{said}");
    right(&["stats", "-o", "json", "--socket"], &[&place.socket()]);
}

#[test]
fn terminate_ends_in_order_even_with_connections_open() {
    for signal in ["TERM", "INT"] {
        let place = Place::new();
        let mut running = Running::start(&place);
        let mut idle = UnixStream::connect(place.socket()).unwrap();
        idle.set_read_timeout(Some(PATIENCE)).unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: tidegate\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        idle.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        running.signal(signal);
        assert_eq!(running.ended().code(), Some(0));
        assert!(!place.socket().exists());
    }
}

#[test]
fn a_socket_that_a_dead_daemon_left_is_taken_over() {
    let place = Place::new();
    let mut first = Running::start(&place);
    first.signal("KILL");
    assert_eq!(first.ended().code(), None);
    assert!(place.socket().exists());
    let said = wrong(&["stats", "--socket"], &[&place.socket()]);
    assert!(said.contains("no data plane answers on"), "{said}");
    let _second = Running::start(&place);
    right(&["stats", "-o", "json", "--socket"], &[&place.socket()]);
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let place = Place::new();
    std::fs::write(place.socket(), "precious").unwrap();
    let said = wrong(&["run", "--config"], &[&place.config()]);
    assert!(said.contains("cannot make the control socket"), "{said}");
    assert_eq!(std::fs::read_to_string(place.socket()).unwrap(), "precious");
}

#[test]
fn metrics_are_served_on_loopback_and_change_nothing() {
    let place = Place::new();
    place.write(&place.text("127.0.0.1:0"));
    let running = Running::start(&place);
    let (_, address) = running.ready.rsplit_once("http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap();
    let answer = http(address, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"), "{answer}");
    assert!(answer.contains("tidegate_dataplane_volume_admitted_bytes_total{volume=\"disk one\"} 0\n"));
    assert!(http(address, "GET /healthz").ends_with("ok\n"));
    for elsewhere in ["POST /reload", "GET /stats"] {
        let answer = http(address, elsewhere);
        assert!(answer.starts_with("HTTP/1.1 404"), "{elsewhere}: {answer}");
    }

    let other = Place::new();
    other.write(&other.text(address));
    let said = wrong(&["run", "--config"], &[&other.config()]);
    assert!(said.contains("cannot serve metrics on") && said.contains("node.metrics"), "{said}");
    assert!(!other.socket().exists(), "a start that fails leaves nothing behind");
    other.write(&other.text("0.0.0.0:9464"));
    let said = wrong(&["run", "--config"], &[&other.config()]);
    assert!(said.contains("is not on loopback; metrics_public = true allows it"), "{said}");
}

#[test]
fn somebody_else_on_the_socket_is_told() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let hang_up = std::thread::spawn(move || drop(listener.accept()));
    let said = wrong(&["reload", "--socket"], &[&place.socket()]);
    assert!(said.contains("the data plane broke off"), "{said}");
    hang_up.join().unwrap();
}

#[test]
fn completions_name_the_commands() {
    let bash = right(&["completions", "bash"], &[]);
    assert!(bash.contains("tidegate-dataplane") && bash.contains("reload"));
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    for shell in ["bash", "zsh", "fish"] {
        let mut child = program(&["completions", shell], &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}
