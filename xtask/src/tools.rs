//! Running programs, and getting those that are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a command of the repository reports to the person who called it.
pub type Outcome<T = ()> = Result<T, String>;

/// The top folder of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The cargo that called us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command, showing it first; an exit status other than 0 is an error that repeats the command.
pub fn show(command: &mut Command) -> Outcome {
    eprintln!("+ {}", line(command));
    quiet(command)
}

/// Like [`show`], without showing.
pub fn quiet(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| format!("cannot run `{}`: {error}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}", line(command))) }
}

/// Runs a command and returns what it printed.
pub fn output(command: &mut Command) -> Outcome<String> {
    let output = command.output().map_err(|error| format!("cannot run `{}`: {error}", line(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{}` ended with {}: {}", line(command), output.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// True for user id 0.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program lies, looking also in the folders that only root has in PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| Path::new(folder).join(program))
        .find(|candidate| candidate.is_file())
}

/// A program and the Debian package that has it.
pub type Tool = (&'static str, &'static str);

/// What the end-to-end tests and the main job use.
pub const TEST_TOOLS: &[Tool] = &[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("tshark", "tshark"),
    ("strace", "strace"),
    ("fio", "fio"),
    ("nbdkit", "nbdkit"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("qemu-img", "qemu-utils"),
    ("bindfs", "bindfs"),
];

/// What the main job uses.
pub const RUN_TOOLS: &[Tool] =
    &[("ip", "iproute2"), ("ethtool", "ethtool"), ("fio", "fio"), ("nbdinfo", "libnbd-bin")];

/// What the comparison with peers uses.
pub const PEER_TOOLS: &[Tool] = &[
    ("dpdk-testpmd", "dpdk"),
    ("ovs-vsctl", "openvswitch-switch-dpdk"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
];

/// Installs what is missing when root on Debian or Ubuntu. Otherwise prints the line to run and returns the
/// missing programs; the caller decides what can go on without them.
pub fn ensure(tools: &[Tool]) -> Outcome<Vec<&'static str>> {
    let missing = |tools: &[Tool]| -> Vec<Tool> {
        tools.iter().copied().filter(|(program, _)| find(program).is_none()).collect()
    };
    let wanted = missing(tools);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let packages: Vec<&str> = wanted.iter().map(|(_, package)| *package).collect();
    if is_root() && find("apt-get").is_some() {
        eprintln!("installing {}", packages.join(" "));
        show(Command::new("apt-get").args(["update", "-qq"]))?;
        show(
            Command::new("apt-get")
                .args(["install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
                .args(&packages)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )?;
    } else {
        eprintln!("missing: {}\n  sudo apt-get install {}", names(&wanted), packages.join(" "));
    }
    Ok(missing(tools).iter().map(|(program, _)| *program).collect())
}

fn names(tools: &[Tool]) -> String {
    tools.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ")
}
