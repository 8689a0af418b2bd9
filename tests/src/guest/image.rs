//! The guest's first and only file system: a `newc` archive (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst) with busybox, the modules in the order in which
//! they go in, and programs with their libraries, all in flat folders.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::kit::Kit;

const INIT: &[u8] = include_bytes!("init.sh");
/// Without these there is no network.
const NETWORK_MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// Writes the archive to `to`. Modules are named as `modprobe` would, programs as they are found by
/// [`Kit::program`]; `own` are programs by path.
pub fn write(kit: &Kit, to: &Path, modules: &[&str], programs: &[&str], own: &[&Path]) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", to.display());
    let file = fs::File::create(to).map_err(failed)?;
    let mut archive = Archive { out: io::BufWriter::new(file), inode: 0 };
    for folder in ["bin", "dev", "modules", "programs", "libraries", "lib64"] {
        archive.entry(folder, 0o040_755, (0, 0), &[]).map_err(failed)?;
    }
    // Before /dev is mounted the kernel opens this one as the first process's input and output.
    archive.entry("dev/console", 0o020_600, (5, 1), &[]).map_err(failed)?;
    archive.entry("init", 0o100_755, (0, 0), INIT).map_err(failed)?;
    archive.file("bin/busybox", &kit.program("busybox")?)?;

    let mut order = Vec::new();
    let index = Modules::find(&kit.modules)?;
    for module in NETWORK_MODULES.iter().chain(modules) {
        index.order(module, &mut order)?;
    }
    let mut list = String::new();
    for path in &order {
        let name = file_name(path);
        archive.file(&format!("modules/{name}"), path)?;
        list += &format!("{name}\n");
    }
    archive.entry("modules/order", 0o100_644, (0, 0), list.as_bytes()).map_err(failed)?;

    let mut libraries = BTreeSet::new();
    let found = programs.iter().map(|name| kit.program(name)).collect::<Result<Vec<_>, _>>()?;
    for path in found.iter().map(PathBuf::as_path).chain(own.iter().copied()) {
        archive.file(&format!("programs/{}", file_name(path)), path)?;
        libraries.extend(kit.libraries_of(path)?);
    }
    for path in &libraries {
        // The interpreter is named by its full path in every program.
        let folder = if path.starts_with("/lib64") { "lib64" } else { "libraries" };
        archive.file(&format!("{folder}/{}", file_name(path)), path)?;
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[]).and_then(|()| archive.out.flush()).map_err(failed)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

struct Archive<W: Write> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn file(&mut self, name: &str, from: &Path) -> Result<(), String> {
        let failed = |error: io::Error| format!("{}: {error}", from.display());
        let bytes = fs::read(from).map_err(failed)?;
        self.entry(name, 0o100_755, (0, 0), &bytes).map_err(failed)
    }

    /// One header of 13 hexadecimal numbers, the name, the bytes, each filled up to 4 bytes.
    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let name_bytes = name.len() as u32 + 1;
        write!(self.out, "070701")?;
        for number in [self.inode, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_bytes, 0] {
            write!(self.out, "{number:08X}")?;
        }
        write!(self.out, "{name}\0")?;
        self.fill(110 + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.fill(bytes.len())
    }

    fn fill(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

/// All modules of a kernel. A name's '_' and '-' are the same.
struct Modules {
    files: Vec<(String, PathBuf)>,
    built_in: BTreeSet<String>,
}

fn plain(name: &str) -> String {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

impl Modules {
    fn find(folder: &Path) -> Result<Modules, String> {
        let list = folder.join("modules.builtin");
        let built_in = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
        let mut files = Vec::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            for entry in entries {
                let path = entry.map_err(|error| error.to_string())?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if file_name(&path).contains(".ko") {
                    files.push((plain(&file_name(&path)), path));
                }
            }
        }
        Ok(Modules { files, built_in: built_in.lines().map(plain).collect() })
    }

    /// Appends a module to `order`, after all that it depends on. The dependencies stand in its `.modinfo` as
    /// `depends=a,b`.
    fn order(&self, name: &str, order: &mut Vec<PathBuf>) -> Result<(), String> {
        let name = plain(name);
        if self.built_in.contains(&name) {
            return Ok(());
        }
        let found = self.files.iter().find(|(file, _)| *file == name);
        let (_, path) = found.ok_or_else(|| format!("the guest's kernel has no module {name}"))?;
        if order.contains(path) {
            return Ok(());
        }
        if path.extension().is_none_or(|extension| extension != "ko") {
            return Err(format!("{}: compressed modules are not read here", path.display()));
        }
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        const DEPENDS: &[u8] = b"\0depends=";
        let depends = bytes.windows(DEPENDS.len()).position(|window| window == DEPENDS);
        let depends = &bytes[depends.map_or(bytes.len(), |at| at + DEPENDS.len())..];
        let depends = String::from_utf8_lossy(depends.split(|byte| *byte == 0).next().unwrap_or(&[]));
        for dependency in depends.split(',').filter(|dependency| !dependency.is_empty()) {
            self.order(dependency, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}
