//! Who asked for what, and what came of it: a line of JSON each, in a file that is never rewritten.
//!
//! Invariant: the file has at most [`BYTES_MAX`], and there is one older one of that size.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};
use tracing::error;

use crate::doors::Peer;

/// Most bytes of a file; then it becomes the older one.
const BYTES_MAX: u64 = 64 << 20;

/// See the module's documentation.
pub struct Audit {
    path: PathBuf,
    open: Mutex<(File, u64)>,
}

impl Audit {
    /// Opens or makes the file.
    pub fn open(path: &Path) -> io::Result<Audit> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Audit { path: path.to_owned(), open: Mutex::new((file, bytes)) })
    }

    /// Writes down that `peer` asked for `asked`, and what came of it. That it cannot is told in the log.
    pub fn write(&self, peer: &Peer, asked: Value, outcome: Value) {
        let line = json!({
            "at_ms": host::wall_ms(),
            "peer": peer.to_string(),
            "asked": asked,
            "outcome": outcome,
        });
        if let Err(failure) = self.append(&format!("{line}\n")) {
            error!(
                "{} is not written: {failure}; what was done is not written down: {line}",
                self.path.display()
            );
        }
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.1 + line.len() as u64 > BYTES_MAX && open.1 > 0 {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *open = (OpenOptions::new().create(true).append(true).open(&self.path)?, 0);
        }
        open.0.write_all(line.as_bytes())?;
        open.1 += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_stays_and_the_file_has_a_bound() {
        let folder = std::env::temp_dir().join(format!("tidegate-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("audit.log");
        let audit = Audit::open(&path).unwrap();
        audit.write(&Peer::Unix { uid: Some(7) }, json!("first"), json!("done"));
        drop(audit);
        let audit = Audit::open(&path).unwrap();
        audit.write(&Peer::Unix { uid: None }, json!("second"), json!("done"));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("uid 7") && text.contains("second"), "{text}");
        audit.open.lock().unwrap().1 = BYTES_MAX;
        audit.write(&Peer::Unix { uid: None }, json!("third"), json!("done"));
        assert!(std::fs::read_to_string(&path).unwrap().contains("third"));
        assert_eq!(std::fs::read_to_string(folder.join("audit.log.1")).unwrap(), text);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
