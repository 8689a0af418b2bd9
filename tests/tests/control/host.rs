//! A host that writes and reads a volume wherever it is served, and knows what it must find there.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::random::Random;

use crate::client::Client;

/// Blocks that it uses.
const BLOCKS: u64 = 16 << 10;
const BLOCK_BYTES: usize = 4096;
/// How long it waits for an answer before it tries another way.
const PATIENCE: Duration = Duration::from_secs(40);

/// See the module's documentation.
pub struct Host {
    /// Where data planes listen.
    pub places: Vec<PathBuf>,
    volume: String,
    client: Option<(usize, Client)>,
    random: Random,
    /// What was written last, by block.
    written: BTreeMap<u64, u64>,
    /// I/Os that were answered, none of them with an error.
    pub answered: u64,
    /// Longest time between two answers.
    pub longest_gap: Duration,
    last: Option<Instant>,
}

/// What a block holds that was written as the `sequence`-th.
fn content(block: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(block << 40 ^ sequence << 10 ^ at as u64).to_le_bytes());
    }
    bytes
}

impl Host {
    pub fn new(places: Vec<PathBuf>, volume: &str, seed: u64) -> Host {
        Host {
            places,
            volume: volume.to_owned(),
            client: None,
            random: Random::new(seed),
            written: BTreeMap::new(),
            answered: 0,
            longest_gap: Duration::ZERO,
            last: None,
        }
    }

    /// Which data plane served it last.
    pub fn at(&self) -> Option<usize> {
        self.client.as_ref().map(|(place, _)| *place)
    }

    /// Writes and reads, one after the other, until it is told to stop or has `ios` answers.
    pub fn work(&mut self, ios: u64, stop: &AtomicBool) {
        let end = self.answered + ios;
        self.last = None;
        while self.answered < end && !stop.load(Ordering::Relaxed) {
            let block = self.random.below(BLOCKS);
            if self.random.below(2) == 0 {
                self.write(block);
            } else {
                self.read(block);
            }
        }
    }

    /// Reads everything that it wrote.
    pub fn verify(&mut self) {
        let blocks: Vec<u64> = self.written.keys().copied().collect();
        blocks.into_iter().for_each(|block| self.read(block));
    }

    fn write(&mut self, block: u64) {
        let sequence = self.answered + 1;
        let bytes = content(block, sequence);
        self.answer(|client| client.write(block * BLOCK_BYTES as u64, &bytes));
        self.written.insert(block, sequence);
    }

    fn read(&mut self, block: u64) {
        let mut bytes = vec![0; BLOCK_BYTES];
        self.answer(|client| client.read(block * BLOCK_BYTES as u64, &mut bytes));
        let expected =
            self.written.get(&block).map_or(vec![0; BLOCK_BYTES], |sequence| content(block, *sequence));
        let place = self.at();
        assert!(bytes == expected, "block {block}, I/O {}, at {place:?} is wrong", self.answered);
    }

    /// Asks until there is an answer, of whoever serves the volume.
    fn answer(&mut self, mut ask: impl FnMut(&mut Client) -> std::io::Result<()>) {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "nobody answers I/O {}", self.answered);
            let Some((_, client)) = &mut self.client else {
                self.client = self.attach();
                continue;
            };
            match ask(client) {
                Ok(()) => break,
                Err(_gone) => self.client = None,
            }
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
        self.answered += 1;
    }

    fn attach(&self) -> Option<(usize, Client)> {
        let clients = self.places.iter().enumerate().filter_map(|(place, path)| {
            let socket = UnixStream::connect(path).ok()?;
            socket.set_read_timeout(Some(PATIENCE)).ok()?;
            Some((place, Client::new(Box::new(socket), &self.volume).ok()?))
        });
        clients.into_iter().next()
    }
}
