//! `cargo xtask guest`: a stock Linux host in QEMU attaches to the daemon, and what that host is made of.
//!
//! QEMU, the kernel and the guest's programs are unpacked into `target/guest`, not installed: that needs no
//! root, changes nothing on the machine, and does not collide with another version of QEMU's packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::tools::{self, Outcome, cargo, find, is_root, output, quiet, root, show};

/// Options of `cargo xtask guest`.
#[derive(clap::Args)]
pub struct Args {
    /// Get what the guest is made of, and stop there
    #[arg(long)]
    fetch: bool,
    /// Names, or parts of names, of tests; without them all run
    filter: Vec<String>,
}

/// Packages that the guest is made of, where this machine does not have them installed.
const PACKAGES: [&str; 7] =
    ["qemu-system-x86", "busybox-static", "nbd-client", "nvme-cli", "fdisk", "fio", "e2fsprogs"];
/// The package that names the kernel's package.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Runs the whole matrix.
pub fn run(args: &Args) -> Outcome {
    fetch()?;
    if args.fetch {
        return Ok(());
    }
    tools::ensure(tools::TEST_TOOLS)?;
    // Not optimised: nearly all the time goes into the emulation, and overflows are found.
    show(cargo().args(["build", "--quiet", "--package", "tidegate-dataplane"]))?;
    let mut command = cargo();
    command.args(["test", "--package", "tests", "--test", "guest"]).env("TIDEGATE_FULL", "1");
    show(command.args(["--", "--nocapture", "--include-ignored"]).args(&args.filter))
}

/// Unpacks what is not there yet into `target/guest/root`.
pub fn fetch() -> Outcome {
    let folder = root().join("target/guest");
    let kit = folder.join("root");
    if kit.is_dir() {
        return Ok(());
    }
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if find(program).is_none() {
            return Err(format!(
                "the guest is unpacked from Debian's packages, and there is no `{program}` here; tests with \
                 a guest will use an installed qemu-system-x86_64 and a cloud kernel in /boot, or be skipped"
            ));
        }
    }
    let packages = match wanted() {
        Ok(packages) => packages,
        Err(_) if is_root() => {
            show(Command::new("apt-get").args(["update", "-qq"]))?;
            wanted()?
        }
        Err(why) => return Err(format!("{why}\n  sudo apt-get update")),
    };
    eprintln!("unpacking {} into {}", packages.join(" "), kit.display());
    let partial = folder.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(|error| format!("{}: {error}", partial.display()))?;
    }
    let debs = partial.join("debs");
    fs::create_dir_all(&debs).map_err(|error| format!("{}: {error}", debs.display()))?;
    if let Err(why) = download(&debs, &packages) {
        if !is_root() {
            return Err(format!("{why}\n  sudo apt-get update"));
        }
        // The lists may be older than what the archive still has.
        show(Command::new("apt-get").args(["update", "-qq"]))?;
        download(&debs, &wanted()?)?;
    }
    let unpacked = partial.join("root");
    for entry in fs::read_dir(&debs).map_err(|error| error.to_string())? {
        let deb = entry.map_err(|error| error.to_string())?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            quiet(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&unpacked))?;
        }
    }
    fs::rename(&unpacked, &kit).map_err(|error| format!("{}: {error}", kit.display()))?;
    fs::remove_dir_all(&partial).map_err(|error| format!("{}: {error}", partial.display()))
}

/// The packages to unpack: what an installation would add to this machine, and the kernel alone.
fn wanted() -> Outcome<Vec<String>> {
    let mut simulate = Command::new("apt-get");
    simulate.args(["--simulate", "--no-install-recommends", "--no-upgrade", "install"]).args(PACKAGES);
    let plan = output(&mut simulate)?;
    // "Inst NAME (VERSION ...)", with the version that goes in brackets before.
    let name = |line: &str| line.strip_prefix("Inst ")?.split_whitespace().next().map(str::to_owned);
    let mut packages: Vec<String> = plan.lines().filter_map(name).collect();
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    packages.push(kernel.ok_or_else(|| format!("apt knows no {KERNEL}"))?.to_owned());
    Ok(packages)
}

fn download(into: &Path, packages: &[String]) -> Outcome {
    output(Command::new("apt-get").args(["download", "-qq"]).args(packages).current_dir(into)).map(drop)
}
