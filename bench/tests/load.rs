//! `tidegate-load` against a server that we did not write: nbdkit.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// nbdkit on a Unix socket, killed when it is dropped.
struct Nbdkit {
    child: Child,
    folder: PathBuf,
}

impl Nbdkit {
    /// Starts it with these words; `None`, and said aloud, where it is not installed.
    fn start(name: &str, words: &[&str]) -> Option<Nbdkit> {
        let folder = std::env::temp_dir().join(format!("tidegate-load-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let child = Command::new("nbdkit")
            .args(["-f", "-U"])
            .arg(folder.join("socket"))
            .args(words)
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = child else {
            println!("skipped: nbdkit is not installed (apt-get install nbdkit)");
            return None;
        };
        let server = Nbdkit { child, folder };
        let until = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(server.socket()).is_err() {
            assert!(Instant::now() < until, "nbdkit does not serve");
            std::thread::yield_now();
        }
        Some(server)
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    fn load(&self, words: &[&str]) -> (Output, serde_json::Value) {
        load(&format!("nbd+unix:///?socket={}", self.socket().display()), words)
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn load(uri: &str, words: &[&str]) -> (Output, serde_json::Value) {
    let program = Path::new(env!("CARGO_BIN_EXE_tidegate-load"));
    let output =
        Command::new(program).arg(uri).args(["-o", "json"]).args(words).output().expect("it was built");
    let figures = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output, figures)
}

#[test]
fn what_was_written_is_read_back() {
    let Some(server) = Nbdkit::start("verify", &["memory", "4M"]) else { return };
    let words = ["--verify", "--reads", "50", "--seconds", "1", "--connections", "3", "--depth", "8"];
    let (output, figures) = server.load(&words);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(figures["reads"].as_u64() > Some(0) && figures["writes"].as_u64() > Some(0), "{figures}");
    assert_eq!((&figures["mismatches"], &figures["errors"]), (&0.into(), &serde_json::json!({})));
    let bytes = figures["bytes"].as_u64().expect("a number");
    assert_eq!(bytes, 4096 * (figures["reads"].as_u64().unwrap() + figures["writes"].as_u64().unwrap()));
}

#[test]
fn a_server_that_loses_writes_is_found_out() {
    // Its writes vanish, and reads are zeroes.
    let Some(server) = Nbdkit::start("loses", &["null", "1M"]) else { return };
    let (output, figures) = server.load(&["--verify", "--reads", "50", "--requests", "2000"]);
    assert_eq!(figures["reads"].as_u64().zip(figures["writes"].as_u64()).map(|(r, w)| r + w), Some(2000));
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(figures["mismatches"].as_u64() > Some(0), "{figures}");
}

#[test]
fn errors_are_counted_by_their_number() {
    let words = ["--filter=error", "memory", "4M", "error=ENOSPC", "error-pwrite-rate=50%"];
    let Some(server) = Nbdkit::start("errors", &words) else { return };
    let (output, figures) = server.load(&["--verify", "--reads", "0", "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(figures["errors"]["28"].as_u64() > Some(0) && figures["writes"].as_u64() > Some(0), "{figures}");
    assert_eq!(figures["mismatches"], 0);
}

#[test]
fn a_rate_is_kept_and_lateness_counts() {
    let Some(server) = Nbdkit::start("rate", &["--filter=delay", "memory", "4M", "delay-read=20ms"]) else {
        return;
    };
    // One place and 20 ms each are 50 requests per second at most; 100 are due.
    let (output, figures) = server.load(&["--rate", "100", "--depth", "1", "--seconds", "2"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let reads = figures["reads"].as_u64().expect("a number");
    assert!((1..=101).contains(&reads), "{figures}");
    let p99_us = figures["p99_us"].as_f64().expect("a number");
    assert!(p99_us > 500_000.0, "the last ones were due about a second before they began: {figures}");
}

#[test]
fn each_request_is_written_down_as_its_client_saw_it() {
    let Some(server) = Nbdkit::start("log", &["memory", "4M"]) else { return };
    let file = server.folder.join("log.csv");
    let words = ["--reads", "0", "--sequential", "--requests", "200", "--flush-every", "100", "--log"];
    let (output, figures) = server.load(&[&words[..], &[file.to_str().expect("UTF-8")]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = std::fs::read_to_string(&file).expect("it is there");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("kind,offset_bytes,asked_ns,answered_ns,error"));
    let (mut offsets, mut flushes) = (Vec::new(), 0);
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let [kind, offset, asked, answered, ""] = fields[..] else { panic!("{line}") };
        let number = |field: &str| field.parse::<u64>().expect("digits");
        assert!(number(asked) > 0 && number(answered) > number(asked), "{line}");
        if kind == "flush" { flushes += 1 } else { offsets.push(number(offset)) }
    }
    offsets.sort_unstable();
    assert!(offsets.iter().zip(0..).all(|(&offset, block)| offset == block * 4096), "{offsets:?}");
    let told = [figures["writes"].as_u64(), figures["flushes"].as_u64()];
    assert_eq!(told, [Some(offsets.len() as u64), Some(flushes)]);
    assert_eq!(offsets.len() as u64 + flushes, 200);
}

#[test]
fn what_cannot_be_done_is_said() {
    for (uri, words, what) in [
        ("nbd+unix:///?socket=/nonexistent", &[][..], "No such file"),
        ("nbd+unix:///?socket=/nonexistent", &["--depth", "0"][..], "the depth is 1 to"),
        ("nbd+unix:///?socket=/nonexistent", &["--block-bytes", "1000"][..], "multiple of 512"),
    ] {
        let (output, _) = load(uri, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(what), "{said}");
    }
}
