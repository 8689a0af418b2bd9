//! Where a test of serving happens: a folder, a daemon that listens there and on loopback, and programs that
//! are its clients.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::client::AskError;
use tests::gateway::{Gateway, folder};
use tests::netns::skip;

/// Removed with everything in it when the test has ended well.
pub struct Place {
    pub folder: PathBuf,
    name: &'static str,
    pub port: u16,
    memory: &'static str,
    /// More of `[nbd]`.
    nbd: String,
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
        Place::with(folder, name, "64MiB", tls, exports)
    }

    /// Starts a daemon with these exports and so much memory for payload.
    pub fn with_memory(name: &'static str, memory: &'static str, exports: &[&str]) -> Place {
        Place::with(folder(name), name, memory, "", exports)
    }

    fn with(folder: PathBuf, name: &'static str, memory: &'static str, nbd: &str, exports: &[&str]) -> Place {
        // Free now; the daemon says so if somebody else takes it in between.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = port.expect("loopback has a free port").port();
        let nbd = nbd.to_owned();
        let mut place = Place { folder, name, port, memory, nbd, exports: exports.concat(), daemon: None };
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

    fn body(&self) -> String {
        format!(
            "[serve]\nmemory = \"{}\"\nhugepages = false\n[nbd]\nlisten = [\"127.0.0.1:{}\", \"{}\"]\n{}{}",
            self.memory,
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

    /// Has the daemon go over to other exports, or to other limits.
    pub fn change(&mut self, exports: &[&str]) {
        self.exports = exports.concat();
        self.daemon().rewrite(self.name, &self.body());
        self.daemon().reload().expect("the daemon takes them");
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

/// Runs a client to its end; `None` when it is not installed.
pub fn client(test: &str, program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip(test, &format!("`{program}` is not installed"));
            return None;
        }
        Err(error) => panic!("{program}: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {}\n{printed}\n{said}", output.status);
    Some(printed.into_owned())
}
