//! Kill -9 at any moment under verified load: what a flush promised is there, and no block is half of anything.
//!
//! Each block names itself and the write that made it, all through. A write's number is higher than those
//! of all writes before it, and writes that overlap keep their order, so after a restart a block must hold the last
//! write that was promised for it or one that was sent later.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tests::gateway::{folder, full};
use tests::random::Random;
use wire::nbd::transmission::{Command, CommandFlags};

use crate::client::Client;
use crate::place::{Place, file};

/// Writes and flushes under way.
const DEPTH: usize = 32;
/// Blocks of the volume that are written; few, so that they are written again and again.
const BLOCKS: u64 = 512;
/// Longest write, in blocks.
const WRITE_BLOCKS_MAX: u64 = 16;
/// Answers after which the daemon dies, at most.
const ANSWERS_MAX: u64 = 2000;

/// Bytes of a block: its number and the write's, over and over; never written means zeroes.
fn name(block: &mut [u8], lba: u64, write: u64) {
    for words in block.chunks_exact_mut(16) {
        words[..8].copy_from_slice(&lba.to_be_bytes());
        words[8..].copy_from_slice(&write.to_be_bytes());
    }
}

/// The write that made a block.
fn write_of(block: &[u8], lba: u64) -> Result<u64, String> {
    let word = |at: usize| u64::from_be_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let (named, write) = (word(0), word(8));
    if block.chunks_exact(16).any(|words| words != &block[..16]) {
        return Err(format!("block {lba} is of two writes"));
    }
    if write != 0 && named != lba {
        return Err(format!("block {lba} says that it is block {named}"));
    }
    Ok(write)
}

/// What is under way.
enum Sent {
    Write {
        first: u64,
        blocks: u64,
        write: u64,
        fua: bool,
    },
    /// What had been answered when it was sent.
    Flush(Vec<u64>),
}

/// One volume and what is known about its blocks.
struct Load {
    export: &'static str,
    block_bytes: usize,
    /// By block: the last write that was promised, answered, and sent.
    promised: Vec<u64>,
    answered: Vec<u64>,
    sent: Vec<u64>,
    last_write: u64,
    random: Random,
    flushes: u64,
}

impl Load {
    fn new(export: &'static str, block_bytes: usize, seed: u64) -> Load {
        let zero = || vec![0; BLOCKS as usize];
        let (promised, answered, sent) = (zero(), zero(), zero());
        Load {
            export,
            block_bytes,
            promised,
            answered,
            sent,
            last_write: 0,
            random: Random::new(seed),
            flushes: 0,
        }
    }

    /// Writes until the connection breaks. `count` hears of every answer.
    fn run(&mut self, mut client: Client, count: &(dyn Fn() + Sync)) {
        let mut under_way = BTreeMap::new();
        loop {
            while under_way.len() < DEPTH {
                let Ok((cookie, sent)) = self.send(&mut client) else { break };
                under_way.insert(cookie, sent);
            }
            // What was answered before the daemon died still counts.
            let Ok(cookie) = client.answer() else { return };
            match under_way.remove(&cookie).expect("an answer to a request") {
                Sent::Write { first, blocks, write, fua } => {
                    for lba in first as usize..(first + blocks) as usize {
                        self.answered[lba] = self.answered[lba].max(write);
                        if fua {
                            self.promised[lba] = self.promised[lba].max(write);
                        }
                    }
                }
                Sent::Flush(answered) => {
                    self.flushes += 1;
                    for (promised, answered) in self.promised.iter_mut().zip(answered) {
                        *promised = answered.max(*promised);
                    }
                }
            }
            count();
        }
    }

    fn send(&mut self, client: &mut Client) -> io::Result<(u64, Sent)> {
        if self.random.below(50) == 0 {
            let cookie = client.send((Command::FLUSH, CommandFlags(0)), 0, 0, &[])?;
            return Ok((cookie, Sent::Flush(self.answered.clone())));
        }
        let blocks = 1 + self.random.below(WRITE_BLOCKS_MAX);
        let first = self.random.below(BLOCKS - blocks + 1);
        let fua = self.random.below(20) == 0;
        self.last_write += 1;
        let write = self.last_write;
        let mut bytes = vec![0; blocks as usize * self.block_bytes];
        for (lba, block) in (first..).zip(bytes.chunks_exact_mut(self.block_bytes)) {
            name(block, lba, write);
            self.sent[lba as usize] = write;
        }
        let flags = if fua { CommandFlags::FUA } else { CommandFlags(0) };
        let offset = first * self.block_bytes as u64;
        let cookie = client.send((Command::WRITE, flags), offset, bytes.len() as u32, &bytes)?;
        Ok((cookie, Sent::Write { first, blocks, write, fua }))
    }

    /// Looks at every block after a restart; what is there now stays.
    fn verify(&mut self, socket: &Path, round: u64) {
        let mut client = Client::unix(socket, self.export);
        let mut bytes = vec![0; BLOCKS as usize * self.block_bytes];
        client.read(0, &mut bytes).expect("the daemon answers");
        for (lba, block) in bytes.chunks_exact(self.block_bytes).enumerate() {
            let found = write_of(block, lba as u64)
                .unwrap_or_else(|wrong| panic!("{}, round {round}: {wrong}", self.export));
            assert!(
                (self.promised[lba]..=self.sent[lba]).contains(&found),
                "{}, round {round}: block {lba} holds write {found}; promised was {}, answered {}, sent {}",
                self.export,
                self.promised[lba],
                self.answered[lba],
                self.sent[lba],
            );
            (self.promised[lba], self.answered[lba], self.sent[lba]) = (found, found, found);
        }
    }
}

#[test]
fn kill_dash_nine_breaks_no_promise() {
    let at = folder("serve-kill");
    let exports =
        [file("pages", &at.join("pages"), "64MiB", 4096), file("sectors", &at.join("sectors"), "64MiB", 512)];
    let mut place = Place::new("serve-kill", &exports.each_ref().map(String::as_str));
    let mut loads = [Load::new("pages", 4096, 0x7469_6465), Load::new("sectors", 512, 0x6761_7465)];
    let mut random = Random::new(0x6b69_6c6c);
    let rounds = if full() { 500 } else { 20 };
    for round in 0..rounds {
        let (answers, end) = (AtomicU64::new(0), 1 + random.below(ANSWERS_MAX));
        let pid = Pid::from_child(&place.daemon().process.0);
        let count = || {
            if answers.fetch_add(1, Ordering::Relaxed) + 1 == end {
                kill_process(pid, Signal::KILL).expect("it lives until now");
            }
        };
        let socket = place.socket();
        std::thread::scope(|scope| {
            // Both are there before the first answer is counted, which may be the last.
            let clients = loads.each_ref().map(|load| Client::unix(&socket, load.export));
            for (load, client) in loads.iter_mut().zip(clients) {
                scope.spawn(|| load.run(client, &count));
            }
        });
        place.start();
        loads.iter_mut().for_each(|load| load.verify(&place.socket(), round));
    }
    for load in &loads {
        println!("{}: {} writes, {} flushes, {rounds} kills", load.export, load.last_write, load.flushes);
        assert!(load.flushes > 0, "flushes were answered");
    }
    place.stop();
}
