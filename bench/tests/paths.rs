//! One volume, two daemons, one NVMe host with a path to each: verified load goes on while the volume changes
//! hands, and while its owner dies.

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::load::{self, Figures, Place, Spec, Uri};
use rustix::process::{Pid, Signal, kill_process};
use tests::gateway::{Gateway, folder};

const NQN: &str = "nqn.2026-11.com.example:disk";

/// A daemon, or the place of one.
struct Owner {
    name: &'static str,
    folder: PathBuf,
    port: u16,
    body: String,
    daemon: Option<Gateway>,
}

impl Owner {
    fn new(name: &'static str, folder: &Path) -> Owner {
        // Free now; the daemon says so if somebody else takes it in between.
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port").port();
        let body = format!(
            "[serve]\nmemory = \"64MiB\"\nhugepages = false\n[nvme]\nlisten = [\"127.0.0.1:{port}\"]\n\
             [[export]]\nname = \"disk\"\nnqn = \"{NQN}\"\nmedium = \"file\"\ndirectory = \"{}\"\ncreate = true\n\
             size = \"64MiB\"\n",
            folder.join("shared").display()
        );
        Owner { name, folder: folder.to_owned(), port, body, daemon: None }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it and waits until the load has come here.
    fn takes_over(&mut self) {
        let daemon = Gateway::start(None, &self.folder, self.name, &self.body);
        daemon.until("the load comes here", || {
            let export = daemon.try_stats().and_then(|report| report.exports.into_iter().next());
            export.and_then(|export| export.counters.get("writes").copied()).unwrap_or(0) > 100
        });
        self.daemon = Some(daemon);
    }

    fn dies(&mut self) {
        let mut daemon = self.daemon.take().expect("it was started");
        kill_process(Pid::from_child(&daemon.process.0), Signal::KILL).expect("it lives until now");
        daemon.process.0.wait().expect("it is our child");
    }
}

#[test]
fn verified_load_goes_on_while_a_volume_changes_hands_and_its_owner_dies() {
    let folder = folder("load-paths");
    let (mut first, mut second) = (Owner::new("first", &folder), Owner::new("second", &folder));
    let spec = Spec {
        paths: vec![second.address()],
        loss: Duration::from_secs(120),
        connections: 2,
        depth: 8,
        read_percent: 50,
        flush_every: Some(16),
        verify: true,
        read_back: true,
        duration: Duration::from_secs(600),
        ..Spec::new(Uri { place: Place::NvmeTcp(first.address()), name: NQN.to_owned() })
    };
    let done = AtomicBool::new(false);
    let mut progress = |_: &Figures| match done.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    first.daemon = Some(Gateway::start(None, &folder, first.name, &first.body));
    let figures = std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run(&spec, &mut progress));
        // The second takes the volume over; the first is refused from then on, and says so.
        second.takes_over();
        first.dies();
        first.takes_over();
        // Now there is no way at all for a while.
        first.dies();
        second.dies();
        second.takes_over();
        done.store(true, Ordering::Relaxed);
        load.join().expect("no panic").expect("there was a path again each time")
    });
    println!("longest time without an answer: {:?}; asked again: {}", figures.longest_gap, figures.retries);
    figures.events.iter().for_each(|(at, what)| println!("{at:?}: {what}"));
    assert_eq!(
        (figures.mismatch_count, &figures.errors),
        (0, &Default::default()),
        "{:?}",
        figures.mismatches
    );
    assert!(figures.retries > 0 && figures.flushes > 0, "{figures:?}");
    assert!(figures.events.iter().any(|(_, what)| what.contains("Internal Path Error")), "{figures:?}");
    second.daemon.take().expect("it runs").stop();
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}
