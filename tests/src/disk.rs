//! Media that are small or go wrong.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at a folder that is made for it, if it is not there. Why not, where that is not allowed.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn mount(at: &Path, bytes: u64) -> Result<SmallDisk, String> {
        std::fs::create_dir_all(at).expect("a folder can be made");
        let size = format!("size={bytes}");
        let words = ["-t", "tmpfs", "-o", &*size, "tidegate-test"];
        let output = Command::new("mount").args(words).arg(at).output().expect("mount runs");
        if output.status.success() {
            return Ok(SmallDisk(at.to_owned()));
        }
        std::fs::remove_dir_all(at).expect("the folder can be removed");
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("a small file system cannot be mounted, as root can: {}", said.trim()))
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a daemon may still be ending.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Turns a bit of the page of a volume that holds these bytes, in whichever of its files it lies.
///
/// # Panics
/// When no file holds it.
pub fn turn_bit(volume: &Path, page: &[u8]) {
    for entry in std::fs::read_dir(volume).expect("the volume is there") {
        let path = entry.expect("listed").path();
        let bytes = std::fs::read(&path).expect("its files can be read");
        let Some(at) = bytes.chunks_exact(page.len()).position(|found| found == page) else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("and written");
        file.write_all_at(&[page[99] ^ 4], (at * page.len() + 99) as u64).expect("written");
        file.sync_all().expect("on the medium");
        return;
    }
    panic!("no file of the volume holds the page");
}
