//! A stock Linux host for tests: Debian's cloud kernel in QEMU, emulated in software, with a shell that runs
//! the steps a test sends it.
//!
//! The guest has one network interface, 10.0.2.15, behind QEMU's user-mode network: [`HOST`] in the guest is
//! 127.0.0.1 in the namespace that QEMU runs in. Its file system is an archive in memory, made anew for every
//! guest. The kernel's log goes to a file by the first serial line; steps come and their output goes by the
//! second.
//!
//! Invariants: the guest dies with its [`Guest`] or with the test's thread; every wait has a limit, which is
//! long, because the machine may be busy and the guest is emulated; what goes wrong shows the kernel's log.

mod image;
mod kit;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::netns::{Held, Namespace};
pub use kit::Kit;

/// The host's loopback as the guest sees it.
pub const HOST: &str = "10.0.2.2";
/// Longest that one stage of booting may take.
const STAGE_LIMIT: Duration = Duration::from_secs(180);
/// Longest that a step may take, unless it says otherwise.
pub const STEP_LIMIT: Duration = Duration::from_secs(300);
/// Stages of booting, in their order, as init.sh names them.
const STAGES: [&str; 3] = ["modules", "network", "ready"];
/// Lines of the kernel's log that a failure shows.
const LOG_LINES: usize = 60;

/// What the guest is to have.
#[derive(Debug, Default)]
pub struct Has<'a> {
    /// Modules, as `modprobe` would name them; those that they need come along.
    pub modules: &'a [&'a str],
    /// Programs by name.
    pub programs: &'a [&'a str],
    /// Programs by path.
    pub own: &'a [&'a Path],
}

/// How a step ended.
#[derive(Debug)]
pub struct Step {
    /// Its exit status.
    pub status: i32,
    /// What it printed, on both outputs.
    pub output: String,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    qemu: Held,
    steps: BufReader<UnixStream>,
    folder: PathBuf,
    sent: u32,
}

impl Guest {
    /// Boots a guest in `space` and waits until it takes steps. Its files lie in `folder`.
    ///
    /// # Panics
    /// When it does not come up, with the stage that it did not reach and the kernel's log.
    pub fn boot(space: &Namespace, kit: &Kit, folder: &Path, has: &Has<'_>) -> Guest {
        let archive = folder.join("guest.cpio");
        image::write(kit, &archive, has.modules, has.programs, has.own)
            .unwrap_or_else(|why| panic!("the guest's archive: {why}"));
        let socket = folder.join("guest.sock");
        let words = words(kit, folder, &archive, &socket);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = std::fs::File::create(folder.join("qemu.log")).expect("a log file");
        let qemu = space.spawn(&words, Stdio::null(), Stdio::from(said));
        let mut stream = None;
        qemu.until("QEMU listens", || {
            stream = UnixStream::connect(&socket).ok();
            stream.is_some()
        });
        let stream = stream.expect("it was connected");
        let mut guest = Guest { qemu, steps: BufReader::new(stream), folder: folder.to_owned(), sent: 0 };
        for stage in STAGES {
            let end = Instant::now() + STAGE_LIMIT;
            loop {
                let line = guest.line(end, &format!("boot, until stage {stage}"));
                if let Some(failure) = line.strip_prefix("#fail ") {
                    guest.give_up(failure);
                }
                if line.strip_prefix("#stage ") == Some(stage) {
                    break;
                }
            }
        }
        // The archive is as large as everything in it, and QEMU has read it.
        std::fs::remove_file(archive).expect("it was written");
        guest
    }

    /// Runs a shell script in the guest and says how it ended.
    ///
    /// # Panics
    /// When it does not end within `limit`, or the guest dies.
    pub fn step(&mut self, what: &str, script: &str, limit: Duration) -> Step {
        self.sent += 1;
        let text = format!("{}\n#run {}\n", script.trim(), self.sent);
        let sent = self.steps.get_mut().write_all(text.as_bytes());
        if let Err(error) = sent {
            self.give_up(&format!("{what}: the guest takes no step: {error}"));
        }
        let end = Instant::now() + limit;
        let last = format!("#end {} ", self.sent);
        let mut output = String::new();
        loop {
            let line = self.line(end, &format!("{what}: {script}\n{output}"));
            if let Some(status) = line.strip_prefix(&last) {
                let status = status.parse().unwrap_or(-1);
                return Step { status, output };
            }
            if let Some(line) = line.strip_prefix(' ') {
                output += line;
                output.push('\n');
            }
        }
    }

    /// Runs a shell script that must end well and returns what it printed.
    ///
    /// # Panics
    /// When it ends otherwise or not within [`STEP_LIMIT`], with what it printed and the kernel's log.
    pub fn run(&mut self, what: &str, script: &str) -> String {
        let began = Instant::now();
        let step = self.step(what, &format!("set -e\n{script}"), STEP_LIMIT);
        if step.status != 0 {
            let Step { status, output } = step;
            self.give_up(&format!("{what} ended with status {status}:\n{script}\n{output}"));
        }
        println!("guest: {what}: {:.1} s", began.elapsed().as_secs_f64());
        step.output
    }

    /// The kernel's log.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.folder.join("kernel.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Switches the guest off and waits until it is gone.
    ///
    /// # Panics
    /// When it does not go.
    pub fn off(mut self) {
        let text = b"sync; poweroff -f\n#run 0\n";
        self.steps.get_mut().write_all(text).expect("the guest takes a last step");
        self.qemu.ended("the guest");
    }

    /// Ends the test, with the kernel's log.
    ///
    /// # Panics
    /// Always.
    pub fn give_up(&self, why: &str) -> ! {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        let qemu = std::fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
        panic!("{why}\n--- the guest's kernel said last:\n{tail}\n--- QEMU said:\n{qemu}");
    }

    /// The next line that the guest reports.
    fn line(&mut self, end: Instant, during: &str) -> String {
        let mut line = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.give_up(&format!("time is up during {during}"));
            }
            self.steps.get_ref().set_read_timeout(Some(left)).expect("a time-out that is not zero");
            match self.steps.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => self.give_up(&format!("the guest ended during {during}")),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => self.give_up(&format!("{error} during {during}")),
            }
        }
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }
}

/// QEMU's command line.
fn words(kit: &Kit, folder: &Path, archive: &Path, socket: &Path) -> Vec<String> {
    let at = |path: &Path| path.to_string_lossy().into_owned();
    let mut words = vec!["env".to_owned(), format!("LD_LIBRARY_PATH={}", kit.libraries()), at(&kit.qemu)];
    for firmware in kit.firmware().iter().filter(|firmware| firmware.is_dir()) {
        words.extend(["-L".to_owned(), at(firmware)]);
    }
    // The kind of processor has CRC32C but no AVX, which costs more in emulation than it gains.
    let fixed = "-nodefaults -no-user-config -display none -no-reboot -machine q35 -accel tcg -cpu Nehalem \
                 -smp 2 -m 640 -netdev user,id=net -device virtio-net-pci,netdev=net,romfile=";
    words.extend(fixed.split_whitespace().map(str::to_owned));
    // The check of the timer counts on ticks in a moment in which a busy machine may not let the emulator run.
    let console = "console=ttyS0 quiet loglevel=5 printk.time=1 panic=-1 mitigations=off random.trust_cpu=1 \
                   no_timer_check";
    words.extend(["-kernel".to_owned(), at(&kit.kernel), "-initrd".to_owned(), at(archive)]);
    words.extend(["-append".to_owned(), console.to_owned()]);
    words.extend(["-serial".to_owned(), format!("file:{}", at(&folder.join("kernel.log")))]);
    words.extend(["-serial".to_owned(), format!("unix:{},server=on,wait=on", at(socket))]);
    words
}
