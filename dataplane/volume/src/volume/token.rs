//! What an answer of the medium belongs to, packed into the number that comes back with it.

use block::ExtentId;

use crate::format::{ExtentKind, Place};

/// What an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// The buffer of a request.
    Payload(u32),
    /// A page that a request covers in part: 0 the first, 1 the last.
    Edge(u32, usize),
    /// A leaf for the cache.
    Leaf(Place),
    /// The batch being written.
    Batch,
    /// The look for a higher epoch.
    Probe,
    /// One file of the sync under way.
    Sync,
    /// A step of making the next log segment.
    Segment,
    /// A step of taking room.
    Grow(ExtentKind, u8),
    /// Something of the checkpoint under way.
    Merge(u32),
    /// A file that exists was opened.
    Opened,
    /// Nobody waits for it.
    Forgotten,
}

const KIND_SHIFT: u32 = 60;
const SLOT_BITS: u32 = 24;

impl Token {
    pub fn pack(self) -> u64 {
        let (kind, value) = match self {
            Token::Payload(slot) => (0, u64::from(slot)),
            Token::Edge(slot, edge) => (1, u64::from(slot) << 1 | edge as u64),
            Token::Leaf(place) => (2, u64::from(place.extent.0) << SLOT_BITS | u64::from(place.slot)),
            Token::Batch => (3, 0),
            Token::Probe => (4, 0),
            Token::Sync => (5, 0),
            Token::Segment => (6, 0),
            Token::Grow(kind, step) => (7, (kind as u64) << 8 | u64::from(step)),
            Token::Merge(which) => (8, u64::from(which)),
            Token::Opened => (9, 0),
            Token::Forgotten => (10, 0),
        };
        kind << KIND_SHIFT | value
    }

    pub fn unpack(number: u64) -> Token {
        let value = number & ((1 << KIND_SHIFT) - 1);
        match number >> KIND_SHIFT {
            0 => Token::Payload(value as u32),
            1 => Token::Edge((value >> 1) as u32, (value & 1) as usize),
            2 => Token::Leaf(Place {
                extent: ExtentId((value >> SLOT_BITS) as u32),
                slot: (value & ((1 << SLOT_BITS) - 1)) as u32,
            }),
            3 => Token::Batch,
            4 => Token::Probe,
            5 => Token::Sync,
            6 => Token::Segment,
            7 => {
                let kind = if value >> 8 == 0 { ExtentKind::Pages } else { ExtentKind::Leaves };
                Token::Grow(kind, value as u8)
            }
            8 => Token::Merge(value as u32),
            9 => Token::Opened,
            _ => Token::Forgotten,
        }
    }
}

#[cfg(test)]
mod tests {
    //! A token comes back as it went.

    use super::*;

    #[test]
    fn every_token_comes_back() {
        let place = Place { extent: ExtentId(u32::MAX), slot: (1 << SLOT_BITS) - 1 };
        for token in [
            Token::Payload(u32::MAX),
            Token::Edge(u32::MAX, 1),
            Token::Leaf(place),
            Token::Batch,
            Token::Probe,
            Token::Sync,
            Token::Segment,
            Token::Grow(ExtentKind::Leaves, 3),
            Token::Grow(ExtentKind::Pages, 255),
            Token::Merge(u32::MAX),
            Token::Opened,
            Token::Forgotten,
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
