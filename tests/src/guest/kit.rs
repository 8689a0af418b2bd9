//! What a guest is made of: QEMU, Debian's cloud kernel with its modules, and programs, from the packages that
//! `cargo xtask guest --fetch` unpacks into `target/guest`, or else from this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// QEMU, a kernel, its modules.
#[derive(Debug)]
pub struct Kit {
    /// Where packages are unpacked, as if it were `/`.
    root: PathBuf,
    /// The emulator.
    pub qemu: PathBuf,
    /// The kernel, as the package has it.
    pub kernel: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl Kit {
    /// Looks for all of it. The error says what is missing and the command that gets it.
    pub fn find() -> Result<Kit, String> {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
        let root = checkout.join("target/guest/root");
        let missing = |what: &str| format!("no {what} for a guest; `cargo xtask guest --fetch` gets it");
        let qemu = find(&root, "qemu-system-x86_64").ok_or_else(|| missing("qemu-system-x86_64"))?;
        let boot = [root.join("boot"), PathBuf::from("/boot")];
        let kernel = boot.iter().find_map(|folder| kernel_in(folder)).ok_or_else(|| missing("kernel"))?;
        let name = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.trim_start_matches("vmlinuz-").to_owned();
        let above = kernel.ancestors().nth(2).unwrap_or(Path::new("/"));
        let modules = ["lib/modules", "usr/lib/modules"].map(|folder| above.join(folder).join(&version));
        let modules = modules.into_iter().find(|folder| folder.is_dir());
        let modules = modules.ok_or_else(|| missing("kernel's modules"))?;
        Ok(Kit { root, qemu, kernel, modules })
    }

    /// Where a program of the guest is taken from.
    pub fn program(&self, name: &str) -> Result<PathBuf, String> {
        find(&self.root, name)
            .ok_or_else(|| format!("no `{name}` for a guest; `cargo xtask guest --fetch` gets it"))
    }

    /// The value of `LD_LIBRARY_PATH` with which unpacked programs run here.
    pub fn libraries(&self) -> String {
        let folders = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        folders.map(|folder| self.root.join(folder).to_string_lossy().into_owned()).join(":")
    }

    /// Folders in which QEMU looks for its firmware, besides its own.
    pub fn firmware(&self) -> [PathBuf; 2] {
        ["usr/share/qemu", "usr/share/seabios"].map(|folder| self.root.join(folder))
    }

    /// The shared libraries of a program, its interpreter among them, as `ldd` finds them.
    pub fn libraries_of(&self, program: &Path) -> Result<Vec<PathBuf>, String> {
        let output = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", self.libraries()).output();
        let output = output.map_err(|error| format!("no `ldd` (libc-bin): {error}"))?;
        let printed = String::from_utf8_lossy(&output.stdout);
        if let Some(line) = printed.lines().find(|line| line.contains("not found")) {
            return Err(format!("{} lacks a library: {}", program.display(), line.trim()));
        }
        // "name => /path (address)" or "/path (address)"; a static program has no such line.
        let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
        Ok(printed.lines().filter_map(path).collect())
    }
}

fn find(root: &Path, program: &str) -> Option<PathBuf> {
    let folders = ["usr/sbin", "usr/bin", "sbin", "bin"];
    let places = [root, Path::new("/")].into_iter().flat_map(|top| folders.map(|folder| top.join(folder)));
    places.map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn kernel_in(boot: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(boot)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("vmlinuz-") && name.contains("cloud")
        })
        .collect();
    found.sort();
    found.pop()
}
