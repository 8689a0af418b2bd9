//! Where a test of serving happens: a folder, a daemon that listens there and on loopback, and programs that
//! are its clients.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent::client::AskError;
use tests::gateway::{Gateway, folder};

/// Removed with everything in it when the test has ended well.
pub struct Place {
    pub folder: PathBuf,
    name: &'static str,
    /// Where NBD clients come in, and NVMe hosts.
    pub port: u16,
    pub nvme: u16,
    memory: &'static str,
    /// More of `[nbd]`, and of `[nvme]`.
    nbd: String,
    keys: String,
    exports: String,
    daemon: Option<Gateway>,
}

impl Place {
    /// Starts a daemon with these exports, and with little memory.
    pub fn new(name: &'static str, exports: &[&str]) -> Place {
        Place::with_memory(name, "64MiB", exports)
    }

    /// The same in a folder that is there already, with this for TLS.
    pub fn secured(folder: PathBuf, name: &'static str, tls: &str, exports: &[&str]) -> Place {
        Place::with(folder, name, "64MiB", [tls, ""], exports)
    }

    /// Starts a daemon with these exports and so much memory for payload.
    pub fn with_memory(name: &'static str, memory: &'static str, exports: &[&str]) -> Place {
        Place::with(folder(name), name, memory, ["", ""], exports)
    }

    /// Starts a daemon with these exports and more keys of `[nvme]`.
    pub fn with_nvme(name: &'static str, keys: &'static str, exports: &[&str]) -> Place {
        Place::with(folder(name), name, "64MiB", ["", keys], exports)
    }

    fn with(
        folder: PathBuf,
        name: &'static str,
        memory: &'static str,
        [nbd, keys]: [&str; 2],
        exports: &[&str],
    ) -> Place {
        // Free now; the daemon says so if somebody else takes one in between.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has a free port"));
        let [port, nvme] = listeners.map(|socket| socket.local_addr().expect("it is bound").port());
        let (nbd, keys, exports) = (nbd.to_owned(), keys.to_owned(), exports.concat());
        let mut place = Place { folder, name, port, nvme, memory, nbd, keys, exports, daemon: None };
        place.start();
        place
    }

    /// Starts the daemon, again if it died.
    pub fn start(&mut self) {
        if let Some(mut dead) = self.daemon.take() {
            dead.process.0.wait().expect("it is our child");
        }
        let daemon = Gateway::start(None, &self.folder, self.name, &self.body());
        self.daemon = Some(daemon);
    }

    /// Kills the daemon as nothing can be killed harder.
    pub fn kill(&mut self) {
        // It is killed when it is dropped.
        self.daemon = None;
    }

    fn body(&self) -> String {
        format!(
            "[serve]\nmemory = \"{}\"\nhugepages = false\n[nvme]\nlisten = [\"127.0.0.1:{}\"]\n{}\n[nbd]\nlisten = \
             [\"127.0.0.1:{}\", \"{}\"]\n{}{}",
            self.memory,
            self.nvme,
            self.keys,
            self.port,
            self.socket().display(),
            self.nbd,
            self.exports
        )
    }

    pub fn daemon(&self) -> &Gateway {
        self.daemon.as_ref().expect("it was started")
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("nbd.sock")
    }

    /// The URI of an export over the Unix socket.
    pub fn unix(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// The URI of an export over TCP.
    pub fn tcp(&self, export: &str) -> String {
        format!("nbd://127.0.0.1:{}/{export}", self.port)
    }

    /// Has the daemon go over to other exports, or to other limits; returns what it says.
    pub fn change(&mut self, exports: &[&str]) -> String {
        self.try_change(exports).expect("the daemon takes them")
    }

    /// Asks the daemon to go over to other exports.
    pub fn try_change(&mut self, exports: &[&str]) -> Result<String, String> {
        self.configure(exports);
        self.daemon().rewrite(self.name, &self.body());
        self.daemon().reload().map_err(|refused| refused.to_string())
    }

    /// What the daemon says, which does not start.
    pub fn refusal(&self) -> String {
        Gateway::refusal(&self.folder, self.name, &self.body())
    }

    /// Has other exports at the next start.
    pub fn configure(&mut self, exports: &[&str]) {
        self.exports = exports.concat();
    }

    /// Has the daemon go over to other TLS.
    pub fn try_secure(&mut self, tls: &str) -> Result<String, AskError> {
        tls.clone_into(&mut self.nbd);
        self.daemon().rewrite(self.name, &self.body());
        self.daemon().reload()
    }

    /// Ends the daemon as a service manager would, and removes the folder.
    pub fn stop(mut self) {
        self.end();
        self.remove();
    }

    /// Ends the daemon as a service manager would.
    pub fn end(&mut self) {
        self.daemon.take().expect("it runs").stop();
        assert!(!self.socket().exists(), "its NBD socket is gone");
    }

    /// Removes the folder.
    pub fn remove(self) {
        std::fs::remove_dir_all(&self.folder).expect("the folder can be removed");
    }
}

/// For tests whose clients poll, or compare what they feel with a clock: one at a time.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An export in memory.
pub fn memory(name: &str, size: &str, more: &str) -> String {
    format!("[[export]]\nname = \"{name}\"\nmedium = \"memory\"\nsize = \"{size}\"\n{more}\n")
}

/// A thin volume in a directory, made at the first start.
pub fn file(name: &str, directory: &Path, size: &str, block: u32) -> String {
    format!(
        "[[export]]\nname = \"{name}\"\nmedium = \"file\"\ndirectory = \"{}\"\ncreate = true\nsize = \"{size}\"\n\
         block = {block}\n",
        directory.display()
    )
}
