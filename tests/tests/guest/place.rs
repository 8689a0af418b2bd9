//! Where a guest meets the daemon: a network namespace whose loopback is all that both have.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tests::gateway::{Gateway, daemon, folder};
use tests::guest::{Guest, Has, Kit};
use tests::netns::{Namespace, skip};

/// Waits for what a guest needs: what it is made of, and that no other one runs, since each keeps two processors
/// busy. `None` where there is nothing to make a guest of, which is said.
pub fn turn(test: &str) -> Option<(Kit, MutexGuard<'static, ()>)> {
    match Kit::find() {
        // A test that failed is no reason for the next one to fail.
        Ok(kit) => Some((kit, TURN.lock().unwrap_or_else(PoisonError::into_inner))),
        Err(why) => {
            skip(test, &why);
            None
        }
    }
}

static TURN: Mutex<()> = Mutex::new(());

/// A daemon and a guest, and a folder that is removed when the test has ended well.
pub struct Place {
    pub space: Namespace,
    pub folder: PathBuf,
    pub guest: Guest,
    _turn: MutexGuard<'static, ()>,
    body: String,
    name: &'static str,
    daemon: Option<Gateway>,
}

impl Place {
    /// Starts both; `None` where there is nothing to make a guest of, which is said. `exports` gets the folder.
    pub fn new(
        test: &str,
        name: &'static str,
        exports: impl FnOnce(&Path) -> String,
        has: &Has<'_>,
    ) -> Option<Place> {
        let (kit, turn) = turn(test)?;
        let (space, folder) = (Namespace::new(), folder(name));
        let body = body(&exports(&folder));
        let daemon = Gateway::start(Some(&space), &folder, name, &body);
        let guest = Guest::boot(&space, &kit, &folder, has);
        Some(Place { space, folder, guest, _turn: turn, body, name, daemon: Some(daemon) })
    }

    /// Kills the daemon as nothing can be killed harder.
    pub fn kill(&mut self) {
        // It is killed when it is dropped.
        self.daemon = None;
    }

    /// Starts the daemon again.
    pub fn start(&mut self) {
        self.daemon = Some(Gateway::start(Some(&self.space), &self.folder, self.name, &self.body));
    }

    /// Has the daemon go over to other exports.
    pub fn change(&mut self, exports: &str) {
        self.configure(exports);
        let daemon = self.daemon.as_ref().expect("it runs");
        daemon.rewrite(self.name, &self.body);
        daemon.reload().expect("the daemon takes them");
    }

    /// Has other exports at the next start.
    pub fn configure(&mut self, exports: &str) {
        self.body = body(exports);
    }

    /// Switches the guest off, ends the daemon, has every volume checked, and removes the folder.
    pub fn stop(mut self, volumes: &[&str]) {
        self.guest.off();
        self.daemon.take().expect("it runs").stop();
        for volume in volumes {
            let directory = self.folder.join(volume);
            let check = Command::new(daemon()).args(["volume", "check"]).arg(&directory).output();
            let check = check.expect("the daemon's program runs");
            let said = String::from_utf8_lossy(&check.stdout).into_owned();
            let complaint = String::from_utf8_lossy(&check.stderr).into_owned();
            assert!(check.status.success(), "volume check {volume}: {said}{complaint}");
            println!("volume check {volume}: {}", said.trim());
        }
        std::fs::remove_dir_all(&self.folder).expect("the folder can be removed");
    }
}

/// A configuration with these exports, and with little memory.
pub fn body(exports: &str) -> String {
    format!("[serve]\nmemory = \"64MiB\"\nhugepages = false\n{exports}")
}

/// A thin volume in a directory, made at the first start.
pub fn export(name: &str, folder: &Path, size: &str, block: u32) -> String {
    format!(
        "[[export]]\nname = \"{name}\"\nmedium = \"file\"\ndirectory = \"{}\"\ncreate = true\nsize = \"{size}\"\n\
         block = {block}\n",
        folder.join(name).display()
    )
}
