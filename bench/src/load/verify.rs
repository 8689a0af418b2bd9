//! Blocks that name themselves, and what must be read.
//!
//! A block begins with magic number, volume, block, sequence number and CRC32C, all little-endian; the rest
//! follows from block and sequence number. Two requests never touch one block at a time, so what a read must
//! find is known: the write answered last. After a write that failed it is not, until the next.

use crate::Outcome;

const MAGIC: u64 = u64::from_le_bytes(*b"tidegate");
const HEAD_BYTES: usize = 32;
const CRC_AT: usize = 28;
/// Blocks that are remembered, at most: 8 bytes each.
const BLOCKS_MAX: u64 = 1 << 28;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing: it was not written, or a write failed.
    No,
    /// This was written last.
    Is(u32),
}

/// All blocks of a volume.
pub(super) struct Blocks {
    volume: u64,
    known: Vec<Known>,
    under_way: Vec<bool>,
    sequence: u32,
    block_bytes: usize,
}

impl Blocks {
    pub fn new(export: &str, blocks: u64, block_bytes: u32) -> Outcome<Blocks> {
        if blocks > BLOCKS_MAX {
            return Err(format!(
                "{blocks} blocks are more than can be verified ({BLOCKS_MAX}); use longer ones"
            ));
        }
        Ok(Blocks {
            // Blocks of another length are not ours either.
            volume: u64::from(block_bytes) << 32 | u64::from(crc32c::crc32c(export.as_bytes())),
            known: vec![Known::No; blocks as usize],
            under_way: vec![false; blocks as usize],
            sequence: 0,
            block_bytes: block_bytes as usize,
        })
    }

    /// The first block from `from` on of which it is known what it must hold.
    pub fn known_from(&self, from: u64) -> Option<u64> {
        let known = self.known.iter().skip(from as usize).position(|known| *known != Known::No)?;
        Some(from + known as u64)
    }

    pub fn is_free(&self, block: u64) -> bool {
        !self.under_way[block as usize]
    }

    /// A request begins; of a write, fills the payload and returns its sequence number.
    pub fn begin(&mut self, block: u64, read: bool, payload: &mut [u8]) -> u32 {
        self.under_way[block as usize] = true;
        if read {
            return 0;
        }
        self.sequence = self.sequence.wrapping_add(1);
        fill(payload, self.volume, block, self.sequence);
        self.sequence
    }

    /// A request ended; of a read, says what is wrong with its payload.
    pub fn end(
        &mut self,
        block: u64,
        read: bool,
        sequence: u32,
        failed: bool,
        payload: &[u8],
    ) -> Result<(), String> {
        self.under_way[block as usize] = false;
        let known = &mut self.known[block as usize];
        match (read, failed) {
            (false, false) => *known = Known::Is(sequence),
            (false, true) => *known = Known::No,
            (true, true) => {}
            (true, false) if payload.len() != self.block_bytes => {
                return Err(format!("block {block}: {} bytes were read", payload.len()));
            }
            (true, false) => return judge(payload, self.volume, block, *known),
        }
        Ok(())
    }
}

fn fill(payload: &mut [u8], volume: u64, block: u64, sequence: u32) {
    let mut state = (block << 32 | u64::from(sequence)) | 1;
    for chunk in payload.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    payload[..8].copy_from_slice(&MAGIC.to_le_bytes());
    payload[8..16].copy_from_slice(&volume.to_le_bytes());
    payload[16..24].copy_from_slice(&block.to_le_bytes());
    payload[24..CRC_AT].copy_from_slice(&sequence.to_le_bytes());
    payload[CRC_AT..HEAD_BYTES].fill(0);
    let crc = crc32c::crc32c(payload);
    payload[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn judge(payload: &[u8], volume: u64, block: u64, known: Known) -> Result<(), String> {
    if known == Known::No && payload.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let word = |at: usize| payload[at..].first_chunk().map_or(0, |octets| u64::from_le_bytes(*octets));
    let (sequence, crc) = (word(24) as u32, (word(24) >> 32) as u32);
    if word(0) != MAGIC || (known == Known::No && word(8) != volume) {
        // Before the first write of this run anything may stand there.
        return if known == Known::No { Ok(()) } else { Err(format!("block {block} does not name itself")) };
    }
    let mut copy = payload.to_vec();
    copy[CRC_AT..HEAD_BYTES].fill(0);
    if crc32c::crc32c(&copy) != crc {
        return Err(format!("block {block} is torn: its checksum does not fit"));
    }
    if (word(8), word(16)) != (volume, block) {
        return Err(format!("block {block} holds block {} of volume {:#x}", word(16), word(8)));
    }
    match known {
        Known::Is(wanted) if wanted != sequence => {
            Err(format!("block {block} holds write {sequence} and not write {wanted}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_right_and_all_else_is_named() {
        let mut blocks = Blocks::new("disk", 4, 512).expect("few");
        let mut first = [0; 512];
        assert!(blocks.is_free(2));
        let one = blocks.begin(2, false, &mut first);
        assert!(!blocks.is_free(2));
        assert_eq!(blocks.end(2, false, one, false, &[]), Ok(()));
        assert!(blocks.is_free(2));
        let mut second = [0; 512];
        let two = blocks.begin(2, false, &mut second);
        assert_eq!(blocks.end(2, false, two, false, &[]), Ok(()));
        let mut read = |block: u64, payload: &[u8]| {
            blocks.begin(block, true, &mut []);
            blocks.end(block, true, 0, false, payload).err().unwrap_or_default()
        };
        assert_eq!(read(2, &second), "");
        assert!(read(2, &first).contains("write 1 and not write 2"));
        assert!(read(2, &[0; 512]).contains("does not name itself"));
        assert!(read(1, &second).contains("holds block 2"));
        assert!(read(2, &second[..100]).contains("100 bytes"));
        assert_eq!(read(3, &[0; 512]), "", "never written");
        let mut foreign = second;
        foreign[8] ^= 1;
        assert_eq!(read(3, &foreign), "", "another volume's, from before this run");
        let mut torn = second;
        torn[511] ^= 1;
        assert!(read(2, &torn).contains("torn"));
        assert_eq!((blocks.known_from(0), blocks.known_from(3)), (Some(2), None));
    }

    #[test]
    fn after_a_failed_write_either_is_right() {
        let mut blocks = Blocks::new("disk", 1, 512).expect("few");
        let (mut old, mut new) = ([0; 512], [0; 512]);
        let one = blocks.begin(0, false, &mut old);
        assert_eq!(blocks.end(0, false, one, false, &[]), Ok(()));
        let two = blocks.begin(0, false, &mut new);
        assert_eq!(blocks.end(0, false, two, true, &[]), Ok(()));
        for payload in [old, new] {
            assert_eq!(blocks.end(0, true, 0, false, &payload), Ok(()));
        }
        assert!(Blocks::new("disk", u64::MAX, 512).is_err());
    }
}
