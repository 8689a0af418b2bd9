//! `tidegate up` as a newcomer uses it: what it prints works, a policy is swapped under a load, and Ctrl-C leaves nothing.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use tests::gateway::{daemon, folder};
use tests::netns::{self, Held, PATIENCE, isolated};

use crate::cluster::command;

/// A run, with what it has printed so far.
struct Up {
    child: Held,
    printed: Arc<Mutex<Vec<String>>>,
    socket: PathBuf,
}

impl Up {
    fn start(at: &Path) -> Up {
        let socket = at.join("cp.sock");
        let mut child = Held(
            command(&socket)
                .args(["up", "--rootless"])
                .env("TMPDIR", at)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("tidegate runs"),
        );
        let output = BufReader::new(child.0.stdout.take().expect("a pipe"));
        let printed: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = Arc::clone(&printed);
        // It ends with its writer.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Up { child, printed, socket }
    }

    /// The first line that has all these words, once it was printed.
    fn line(&self, words: &[&str]) -> String {
        let mut found = None;
        self.child.until(&format!("a line with {words:?}"), || {
            let printed = self.printed.lock().unwrap_or_else(PoisonError::into_inner);
            found = printed.iter().find(|line| words.iter().all(|word| line.contains(word))).cloned();
            found.is_some()
        });
        found.expect("it was found")
    }

    /// Runs a line that it printed, as a shell does.
    fn run(&self, line: &str) -> Output {
        Command::new("sh").args(["-c", line]).output().expect("a shell")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_it_prints_works_a_policy_is_swapped_under_load_and_ctrl_c_leaves_nothing() {
    isolated("up::what_it_prints_works_a_policy_is_swapped_under_load_and_ctrl_c_leaves_nothing", || {
        let at = folder("up");
        let mut up = Up::start(&at);
        let fio = up.line(&["fio", "nbd+unix:///disk"]);
        let uri = fio.split('\'').nth(1).expect("quoted").to_owned();
        let activate = up.line(&["policy activate leasing-"]);
        up.line(&["Live figures"]);

        let words = [&*uri, "--verify", "--read-back", "--seconds", "4", "--reads", "50"];
        let load = Command::new(daemon().with_file_name("tidegate-load"))
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the load runs");
        let swapped = up.run(&activate);
        assert!(swapped.status.success(), "{activate}: {}", text(&swapped.stderr));
        // What needs a lease asks the new policy.
        let create = ["volume", "create", "more", "--size", "1GiB", "--tenant", "blue", "--wait"];
        let made = command(&up.socket).args(create).output().expect("tidegate runs");
        assert!(made.status.success(), "{}", text(&made.stderr));
        let load = load.wait_with_output().expect("it is our child");
        assert!(load.status.success(), "{}{}", text(&load.stdout), text(&load.stderr));
        let list = command(&up.socket).args(["policy", "list", "-o", "json"]).output().expect("it runs");
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
        let leasing = list["kinds"].as_array().expect("kinds").iter().find(|one| one["kind"] == "leasing");
        let leasing = leasing.expect("there is one");
        assert!(leasing["active"]["name"] == "leasing-pack-tight", "{leasing}");
        assert!(
            leasing["counters"]["faults"].as_object().is_none_or(|faults| faults.is_empty()),
            "{leasing}"
        );

        // A second one beside it would take its place.
        let second = command(&up.socket).args(["up", "--rootless"]).output().expect("tidegate runs");
        assert!(!second.status.success() && text(&second.stderr).contains("running already"));

        kill_process(Pid::from_child(&up.child.0), Signal::INT).expect("it lives");
        assert!(up.child.ends_within(PATIENCE), "Ctrl-C does not end it");
        assert!(up.child.0.wait().expect("it has ended").success());
        let left = || std::fs::read_dir(&at).expect("our folder").map(|one| one.expect("an entry").path());
        netns::until("nothing is left", || !left().any(|path| path.join("controlplane.toml").exists()));
        std::fs::remove_dir_all(&at).expect("the test's folder can be removed");
    });
}
