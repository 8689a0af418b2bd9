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
        let mounted = run("mount", &["-t", "tmpfs", "-o", &size, "tidegate-test", &at.to_string_lossy()]);
        SmallDisk::of(at, mounted)
    }

    /// The same with ext4 on a loop device, whose file lies beside the folder.
    ///
    /// # Panics
    /// When the folder or the file cannot be made.
    pub fn mount_ext4(at: &Path, bytes: u64) -> Result<SmallDisk, String> {
        std::fs::create_dir_all(at).expect("a folder can be made");
        let image = at.with_extension("image");
        let made = std::fs::File::create(&image).and_then(|file| file.set_len(bytes));
        made.expect("a file can be made");
        let (image, target) = (image.to_string_lossy(), at.to_string_lossy());
        let mounted = run("mkfs.ext4", &["-q", "-m", "0", &image])
            .and_then(|()| run("mount", &["-o", "loop", &image, &target]));
        SmallDisk::of(at, mounted)
    }

    fn of(at: &Path, mounted: Result<(), String>) -> Result<SmallDisk, String> {
        mounted.map(|()| SmallDisk(at.to_owned())).map_err(|why| {
            // It is empty; should it stay, nothing is wrong.
            let _ = std::fs::remove_dir(at);
            format!("a small file system cannot be mounted, as root can: {why}")
        })
    }

    /// Has nothing be changed on it until what this returns is dropped: writes wait.
    ///
    /// # Panics
    /// When that cannot be.
    pub fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["-f", &self.0.to_string_lossy()]).expect("it can be frozen");
        Frozen(self)
    }

    /// Where it is.
    pub fn at(&self) -> &Path {
        &self.0
    }
}

/// A file system that is frozen.
#[derive(Debug)]
pub struct Frozen<'a>(&'a SmallDisk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It fails only where that was done already.
        let _ = run("fsfreeze", &["-u", &self.0.at().to_string_lossy()]);
    }
}

/// Runs a program; what it said if it failed.
fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", said.trim())) }
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
