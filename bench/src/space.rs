//! A network namespace of our own: what happens on its interfaces is seen by nobody else and is gone when we are.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Outcome;

/// The namespace that the calling thread, and every thread and program that it starts from now on, is in.
#[derive(Debug)]
pub struct Space(());

impl Space {
    /// Makes a namespace and moves the calling thread into it. Needs root. It lives as long as something
    /// is in it, so nothing needs to be cleaned up, however we end.
    pub fn enter() -> Outcome<Space> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root; call this with sudo".to_owned());
        }
        let ours = std::fs::read_link("/proc/thread-self/ns/net").map_err(|error| error.to_string())?;
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot run setpriv and unshare (package util-linux): {error}"))?;
        let entered = follow(&holder, &ours);
        // We hold the namespace now. Both fail only when the child has ended already.
        let _ = holder.kill();
        let _ = holder.wait();
        entered?;
        let space = Space(());
        space.run("ip", "link set lo up")?;
        Ok(space)
    }

    /// Runs a program inside; what it prints on standard output is the result.
    pub fn run(&self, program: &str, words: &str) -> Outcome<String> {
        output(Command::new(program).args(words.split_whitespace()))
    }

    /// Makes a pair of interfaces joined by a cable, up, without IPv6 chatter and without offloads that
    /// would leave checksums unfinished.
    pub fn veth(&self, one: &str, other: &str) -> Outcome {
        self.run("ip", &format!("link add {one} type veth peer name {other}"))?;
        for name in [one, other] {
            // Without IPv6 in the kernel there is no such file and no chatter.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
            self.run("ethtool", &format!("-K {name} tx off"))?;
            self.run("ip", &format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Removes an interface and its peer.
    pub fn remove(&self, name: &str) -> Outcome {
        self.run("ip", &format!("link del {name}")).map(drop)
    }
}

/// Something for a processor to do whenever it has nothing to do, until it is dropped.
#[derive(Debug)]
pub struct Busy(Child);

impl Busy {
    /// Starts it on a processor, at the lowest priority that there is: it makes room for everybody, at once.
    pub fn start(_inside: &Space, cpu: usize) -> Outcome<Busy> {
        let words = format!("--pdeathsig KILL -- taskset -c {cpu} chrt --idle 0 sh -c");
        let child = Command::new("setpriv")
            .args(words.split_whitespace())
            .arg("while :; do :; done")
            .stdin(Stdio::null())
            .spawn();
        child.map(Busy).map_err(|error| format!("cannot run setpriv (package util-linux): {error}"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Both fail only when the child has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn follow(holder: &Child, ours: &std::path::Path) -> Outcome {
    let path = format!("/proc/{}/ns/net", holder.id());
    let until = Instant::now() + Duration::from_secs(5);
    while std::fs::read_link(&path).map_or(true, |theirs| theirs == *ours) {
        if Instant::now() > until {
            return Err("no new network namespace within 5 s".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| format!("cannot enter the new network namespace: {error}"))
}

/// Runs a command and returns what it printed.
pub fn output(command: &mut Command) -> Outcome<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}: {}", output.status, said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
