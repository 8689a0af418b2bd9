//! Bytes come back as they went; damaged ones are refused, and nothing panics.

use proptest::prelude::*;

use super::*;

const IDENTITY: Identity = [9; 16];

fn mapped(extent: u32, slot: u32, crc: u32) -> Mapped {
    Mapped { place: Place { extent: ExtentId(extent), slot }, crc }
}

#[test]
fn a_superblock_is_drawn_as_documented() {
    let page = superblock(IDENTITY, BlockSize::B512);
    assert_eq!(&page[..16], b"TIDEGATESUPR\x01\0\0\0");
    assert_eq!(page[16..32], IDENTITY);
    assert_eq!(page[40..48], 512_u64.to_le_bytes());
    assert_eq!(page[56..60], 64_u32.to_le_bytes());
    assert_eq!(read_superblock(&page), Ok((IDENTITY, BlockSize::B512)));
}

#[test]
fn what_is_not_ours_is_refused_with_the_reason() {
    let page = superblock(IDENTITY, BlockSize::B4096);
    assert_eq!(read_superblock(&[0; PAGE_BYTES]), Err(FormatError::NotOurs));
    assert_eq!(read_superblock(&page[..20]), Err(FormatError::NotOurs));
    let mut newer = page.clone();
    newer[12] = 2;
    assert_eq!(read_superblock(&newer), Err(FormatError::Version(2)));
    let mut flipped = page.clone();
    flipped[40] ^= 1;
    assert_eq!(read_superblock(&flipped), Err(FormatError::Checksum));
    assert_eq!(Header::open(&page, Kind::Leaf, &IDENTITY), Err(FormatError::Foreign));
    assert_eq!(Header::open(&page, Kind::Superblock, &[1; 16]), Err(FormatError::Foreign));
    let mut long = page.clone();
    long[57] = 0xff;
    assert_eq!(read_superblock(&long), Err(FormatError::Contents));
    let mut size = page;
    let header = Header { a: 1024, ..Header::peek(&size).expect("ours") };
    header.seal(&mut size);
    assert_eq!(read_superblock(&size), Err(FormatError::Contents));
}

#[test]
fn a_leaf_entry_holds_the_largest_numbers() {
    let mut leaf = vec![0; LEAF_BYTES];
    let (page, there) = ((1 << 34) - 1, mapped(u32::MAX, (1 << 24) - 1, u32::MAX));
    put_entry(&mut leaf, LEAF_ENTRIES - 1, page, there);
    assert_eq!(entry(&leaf, LEAF_ENTRIES - 1), (page, there));
    assert_eq!((LEAF_ENTRIES, entry_count(&leaf)), (1020, 0));
}

#[test]
fn records_come_back_in_order() {
    let mut bytes = vec![0; 200];
    let pages = [mapped(1, 2, 3), mapped(4, 5, 6)];
    let at = put_write(&mut bytes, HEADER_BYTES, 77, pages.into_iter());
    assert_eq!(at, HEADER_BYTES + write_record_bytes(2));
    let end = put_hole(&mut bytes, at, 9, 1 << 34);
    let expected =
        vec![Record::Write { first: 77, pages: pages.to_vec() }, Record::Hole { first: 9, count: 1 << 34 }];
    assert_eq!(records(&bytes[..end]), Ok(expected));
    assert_eq!(records(&bytes[..end - 1]), Err(FormatError::Contents));
    bytes[HEADER_BYTES] = 3;
    assert_eq!(records(&bytes[..end]), Err(FormatError::Contents));
}

#[test]
fn a_checkpoint_comes_back_whole_or_not_at_all() {
    let place = Place { extent: ExtentId(3), slot: 4 };
    let kind = ExtentKind::Leaves;
    let checkpoint = Checkpoint {
        epoch: Epoch(5),
        number: 6,
        batch: 7,
        fixed: CheckpointFixed {
            blocks: 8,
            segment: 9,
            next_extent: 10,
            sealed_epoch: 4,
            sealed_batch: 12,
            extents: 1,
            leaves: 1,
            runs: 1,
        },
        extents: vec![ExtentEntry {
            id: ExtentId(3),
            kind,
            epoch: Epoch(5),
            fresh: 6,
            live: 7,
            allocated: 8,
        }],
        leaves: vec![(1 << 33, LeafRef { place, crc: 1, entries: 2 })],
        runs: vec![Run { place, slots: 3 }],
    };
    let bytes = checkpoint.write(&IDENTITY);
    assert_eq!(Checkpoint::read(&bytes, &IDENTITY), Ok(checkpoint));
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        assert!(Checkpoint::read(&flipped, &IDENTITY).is_err(), "byte {at}");
        assert!(Checkpoint::read(&bytes[..at], &IDENTITY).is_err(), "cut at {at}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), sealed: bool) {
        if sealed && bytes.len() >= HEADER_BYTES {
            for kind in [Kind::Checkpoint, Kind::Batch] {
                let length = bytes.len() as u32;
                let header = Header { kind, identity: IDENTITY, epoch: Epoch(1), a: 1, b: 1, bytes: length };
                header.seal(&mut bytes);
                let _whatever = (Checkpoint::read(&bytes, &IDENTITY), records(&bytes));
            }
        }
        let _whatever = (Checkpoint::read(&bytes, &IDENTITY), records(&bytes), read_superblock(&bytes));
    }
}
