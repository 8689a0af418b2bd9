//! What a volume does when the medium lies, fails or is full, or when another owner takes over.

use block::{BlockSize, Epoch, ExtentId, Fault, FileName, Lba, Op, Status};

use super::{Bed, disk, filled, small};
use crate::crash::CrashDisk;
use crate::format::{LEAF_BYTES, PAGE_BYTES, Place};
use crate::store::{self, Problem};
use crate::{Config, Health, OpenError};

const PAGE: usize = PAGE_BYTES;

/// The place of the only page that holds `value` in all its bytes.
fn place_of(disk: &CrashDisk, value: u8) -> (FileName, Place) {
    use crate::Directory;
    for name in disk.list().expect("readable") {
        let FileName::Extent { id, .. } = name else { continue };
        for slot in 0..disk.len(name).expect("there") / PAGE as u64 {
            let mut page = [0; PAGE];
            disk.read(name, slot * PAGE as u64, &mut page).expect("readable");
            if page.iter().all(|&byte| byte == value) {
                return (name, Place { extent: id, slot: slot as u32 });
            }
        }
    }
    panic!("no page of {value}");
}

#[test]
fn a_flipped_bit_is_an_error_that_names_the_place_and_never_data() {
    let disk = disk(1 << 20, BlockSize::B512);
    let mut bed = Bed::new(&disk);
    for page in 0..4_u8 {
        assert_eq!(bed.write(u64::from(page) * 8, &filled(PAGE, page + 1)), Status::Ok);
    }
    bed.checkpoint();
    let (name, place) = place_of(&disk, 3);
    disk.flip(name, place.slot as usize * PAGE + 1234);
    let expected =
        Status::Corrupt { lba: Lba(16), extent: place.extent, offset: u64::from(place.slot) * PAGE as u64 };
    // Whole, together with others, in part, compared, and to be modified: the same error.
    assert_eq!(bed.read(16, 8).status, expected);
    assert_eq!(bed.read(0, 32).status, expected);
    assert_eq!(bed.read(17, 1).status, expected);
    assert_eq!(bed.run(Op::Compare, 16, 8, Some(&filled(PAGE, 3))).status, expected);
    assert_eq!(bed.write(17, &filled(512, 9)), expected);
    assert_eq!(bed.volume().stats().pages_corrupt, 5);
    assert_eq!(bed.read(8, 8).bytes, filled(PAGE, 2), "its neighbours are whole");
    let checked = store::check(&disk).expect("readable");
    assert_eq!(checked.problems, [Problem::Page { lba: Lba(16), place }]);
    assert!(checked.problems[0].to_string().contains("block 16"));
    // Written anew as a whole it is whole.
    assert_eq!(bed.write(16, &filled(PAGE, 7)), Status::Ok);
    assert_eq!(bed.read(16, 8).bytes, filled(PAGE, 7));
    assert_eq!(store::check(&disk).expect("readable").problem_count, 0);
    bed.kill();
}

#[test]
fn a_damaged_leaf_is_an_error_for_its_range() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(5, &filled(PAGE, 1)), Status::Ok);
    bed.checkpoint();
    bed.kill();
    let mut text = Vec::new();
    store::dump(&disk, &mut text).expect("readable");
    let text = String::from_utf8(text).expect("text");
    let line = text.lines().find(|line| line.starts_with("leaf from")).expect("a leaf");
    let number = |word: &str| -> u32 {
        let rest = &line[line.find(word).expect("named") + word.len()..];
        rest.trim().split(',').next().expect("a number").trim().parse().expect("a number")
    };
    let place = Place { extent: ExtentId(number("extent")), slot: number("slot") };
    let name = FileName::Extent { epoch: Epoch(2), id: place.extent };
    disk.flip(name, place.slot as usize * LEAF_BYTES + 70);
    let mut bed = Bed::new(&disk);
    let offset = u64::from(place.slot) * LEAF_BYTES as u64;
    let status = |page| Status::Corrupt { lba: Lba(page), extent: place.extent, offset };
    assert_eq!(bed.read(5, 1).status, status(5));
    assert_eq!(bed.read(9, 1).status, status(9), "whether it was ever written cannot be told");
    assert_eq!(bed.write(9, &filled(PAGE, 2)), Status::Ok);
    assert_eq!(bed.read(9, 1).bytes, filled(PAGE, 2));
    let problems = store::check(&disk).expect("readable").problems;
    assert_eq!(problems, [Problem::Leaf { lba: Lba(0), place }]);
    bed.kill();
}

#[test]
fn a_higher_epoch_fences_writes_flushes_and_reads() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut old = Bed::new(&disk);
    assert_eq!(old.write(0, &filled(PAGE, 1)), Status::Ok);
    let mut new = Bed::new(&disk);
    assert_eq!(new.recovery.epoch, Epoch(3));
    assert_eq!(new.read(0, 1).bytes, filled(PAGE, 1), "what was acknowledged is there, flushed or not");
    assert_eq!(new.write(0, &filled(PAGE, 2)), Status::Ok);
    assert_eq!(old.write(0, &filled(PAGE, 3)), Status::Fenced);
    assert_eq!(old.volume().health(), Health::Fenced);
    assert_eq!(old.flush(), Status::Fenced);
    assert_eq!(old.read(0, 1).status, Status::Fenced);
    assert_eq!(new.read(0, 1).bytes, filled(PAGE, 2));
    old.kill();
    new.kill();
}

#[test]
fn a_reader_notices_a_higher_epoch_within_fifty_milliseconds() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut old = Bed::new(&disk);
    assert_eq!(old.write(0, &filled(PAGE, 1)), Status::Ok);
    assert_eq!(old.read(0, 1).status, Status::Ok);
    let new = Bed::new(&disk);
    old.now_ns += 50_000_000;
    assert_eq!(old.read(0, 1).status, Status::Ok, "the documented window");
    old.now_ns += 1;
    assert_eq!(old.read(0, 1).status, Status::Fenced);
    old.kill();
    new.kill();
}

#[test]
fn a_reader_stopped_before_its_answer_looks_again() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut old = Bed::new(&disk);
    assert_eq!(old.write(0, &filled(PAGE, 1)), Status::Ok);
    assert_eq!(old.read(0, 1).status, Status::Ok);
    old.submit(Op::Read, 0, 1, Some(&filled(PAGE, 0)));
    let request = old.next_request().expect("the page is read");
    let new = Bed::new(&disk);
    old.now_ns += 50_000_001;
    old.carry_out(request);
    assert_eq!(old.settle()[0].status, Status::Fenced);
    old.kill();
    new.kill();
}

#[test]
fn reads_are_answered_however_slow_the_turns_are() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Ok);
    bed.submit(Op::Read, 0, 1, Some(&filled(PAGE, 0)));
    for _ in 0..100 {
        bed.now_ns += 200_000_000;
        bed.step();
        let Some(request) = bed.next_request() else { continue };
        bed.now_ns += 200_000_000;
        bed.carry_out(request);
        if let Some(answer) = bed.answers().pop() {
            assert_eq!((answer.status, answer.bytes), (Status::Ok, filled(PAGE, 1)));
            bed.kill();
            return;
        }
    }
    panic!("no answer in a hundred turns");
}

#[test]
fn an_owner_stopped_anywhere_in_a_write_is_fenced_when_it_goes_on() {
    // The owner is stopped before each of its requests, as by SIGSTOP; another one takes over, writes, and the
    // first goes on with what it had in hand.
    for stop in 0.. {
        let disk = disk(1 << 20, BlockSize::B4096);
        let mut old = Bed::new(&disk);
        assert_eq!(old.write(1, &filled(PAGE, 1)), Status::Ok);
        assert_eq!(old.flush(), Status::Ok);
        old.submit(Op::Write { fua: false }, 1, 2, Some(&filled(2 * PAGE, 2)));
        old.submit(Op::Write { fua: true }, 0, 1, Some(&filled(PAGE, 3)));
        let (mut done, mut answers) = (0, Vec::new());
        while done < stop {
            old.step();
            let Some(request) = old.next_request() else { break };
            old.carry_out(request);
            answers.extend(old.answers());
            done += 1;
        }
        let acknowledged = answers.len();
        let mut new = Bed::new(&disk);
        let first = new.read(0, 4).bytes;
        assert_eq!(new.write(3, &filled(PAGE, 9)), Status::Ok);
        answers.extend(old.settle());
        assert_eq!(answers.len(), 2);
        for answer in &answers[acknowledged..] {
            assert_eq!(answer.status, Status::Fenced, "stopped before request {stop}");
        }
        for answer in &answers[..acknowledged] {
            let page = if answer.tag == 3 { 1 } else { 0 };
            let value = if answer.tag == 3 { 2 } else { 3 };
            assert_eq!((answer.status, first[page * PAGE]), (Status::Ok, value), "acknowledged and seen");
        }
        let again = new.read(0, 4).bytes;
        assert_eq!(again[..3 * PAGE], first[..3 * PAGE], "nothing changed behind the new owner's back");
        new.checkpoint();
        assert_eq!(new.read(0, 3).bytes, first[..3 * PAGE]);
        old.kill();
        new.kill();
        if acknowledged == 2 {
            assert!(stop > 5, "{stop}");
            return;
        }
    }
}

#[test]
fn two_owners_that_open_at_once_do_not_both_succeed() {
    use crate::Directory;
    let disk = disk(1 << 20, BlockSize::B4096);
    disk.create(FileName::Epoch(Epoch(3))).expect("a claim in between");
    let bed = Bed::new(&disk);
    assert_eq!(bed.recovery.epoch, Epoch(4));
    bed.kill();
    // Somebody claims the next epoch while this one opens: the claim is found at the end.
    for calls in 2..12 {
        let disk = disk.copy();
        disk.claim_after(calls, FileName::Epoch(Epoch(6)));
        let error = Bed::open(&disk, small()).err().expect("refused");
        assert!(matches!(error, OpenError::Raced(Epoch(6))), "{error}");
    }
}

#[test]
fn an_owner_that_is_not_sure_is_fenced() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    disk.fail_probes(true);
    assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Fenced);
    bed.kill();
}

#[test]
fn a_failed_write_is_an_error_and_a_failed_log_or_sync_ends_writing() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Ok);
    disk.fail_next(1, Fault::Io(5));
    let status = bed.write(0, &filled(PAGE, 2));
    assert!(matches!(status, Status::MediaError { lba: Lba(0), .. }), "{status}");
    assert_eq!((bed.volume().health(), bed.read(0, 1).bytes), (Health::Sound, filled(PAGE, 1)));
    disk.fail_next(1, Fault::Io(5));
    assert_eq!(bed.flush(), Status::Broken, "the sync failed");
    assert_eq!(bed.volume().health(), Health::Broken);
    assert_eq!(bed.write(0, &filled(PAGE, 3)), Status::Broken);
    assert_eq!(bed.read(0, 1).bytes, filled(PAGE, 1), "reads go on");
    bed.kill();
    let mut bed = Bed::new(&disk);
    bed.settle();
    bed.submit(Op::Write { fua: false }, 0, 1, Some(&filled(PAGE, 4)));
    disk.fail_after(1, 1, Fault::Io(5));
    let answers = bed.settle();
    assert_eq!(answers[0].status, Status::Broken, "the log failed");
    bed.kill();
}

#[test]
fn a_failed_checkpoint_ends_writing_and_loses_nothing() {
    for failing in 0..4 {
        let disk = disk(1 << 20, BlockSize::B4096);
        let mut bed = Bed::new(&disk);
        assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Ok);
        assert_eq!(bed.flush(), Status::Ok);
        disk.fail_after(failing, 1, Fault::Io(5));
        bed.volume().checkpoint();
        bed.settle();
        assert_eq!(bed.volume().health(), Health::Broken, "write or sync {failing} failed");
        assert!(bed.volume().is_idle());
        // Nothing of the memory is lost: the pool would say so.
        bed.volume.take().expect("open").close(&mut bed.pool);
        drop(bed);
        let mut bed = Bed::new(&disk.crash(false, |_, _| false));
        assert_eq!(bed.read(0, 1).bytes, filled(PAGE, 1));
        bed.kill();
    }
}

/// A volume larger than its disk, filled until there is no room; how many pages got in.
fn fill(bed: &mut Bed, from: u64) -> u64 {
    let mut page = from;
    loop {
        match bed.write(page, &filled(PAGE, page as u8)) {
            Status::Ok => page += 1,
            Status::NoSpace => return page,
            other => panic!("page {page}: {other}"),
        }
        bed.now_ns += 1_000_000;
    }
}

#[test]
fn a_full_disk_refuses_new_pages_and_nothing_else() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    disk.limit(Some(600));
    let end = fill(&mut bed, 0);
    assert!((300..600).contains(&end), "{end} pages");
    let stats = bed.volume().stats();
    assert!(stats.expansions > 5 && stats.expansions_refused > 0, "{stats:?}");
    for page in 0..end {
        assert_eq!(bed.read(page, 1).bytes, filled(PAGE, page as u8));
    }
    // Overwrites go on, many more than there is room for at once.
    for round in 1..4_u8 {
        for page in 0..end {
            let value = (page as u8).wrapping_add(round);
            assert_eq!(bed.write(page, &filled(PAGE, value)), Status::Ok, "round {round}, page {page}");
            bed.now_ns += 1_000_000;
        }
    }
    let more = fill(&mut bed, end);
    assert!(more - end < 100, "{} new pages beyond {end}, in what the log gave back", more - end);
    assert_eq!(bed.flush(), Status::Ok);
    assert!(disk.pages() <= 600);
    // Giving some back makes room, and a crash in this state loses nothing.
    assert_eq!(bed.run(Op::Discard, 0, 100, None).status, Status::Ok);
    assert_eq!(bed.flush(), Status::Ok);
    bed.checkpoint();
    for page in 0..50 {
        assert_eq!(
            bed.write(more + page, &filled(PAGE, 77)),
            Status::Ok,
            "page {page} in the room of the discarded"
        );
        bed.now_ns += 1_000_000;
    }
    assert_eq!(bed.flush(), Status::Ok);
    bed.kill();
    let after = disk.crash(false, |_, _| false);
    assert!(after.pages() + 50 > 600, "it is full, but for what was discarded: {}", after.pages());
    assert_eq!(store::check(&after).expect("readable").problem_count, 0);
    let mut bed = Bed::new(&after);
    assert!(bed.read(0, 100).zeroes);
    for page in 100..more {
        let value = if page < end { (page as u8).wrapping_add(3) } else { page as u8 };
        assert_eq!(bed.read(page, 1).bytes, filled(PAGE, value));
    }
    assert_eq!(bed.read(more, 50).bytes, filled(50 * PAGE, 77));
    bed.kill();
}

#[test]
fn a_checkpoint_without_room_rests_until_it_is_worth_asking_again() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    let end = 20;
    for page in 0..end {
        assert_eq!(bed.write(page, &filled(PAGE, page as u8)), Status::Ok);
    }
    disk.limit(Some(disk.pages()));
    bed.volume().checkpoint();
    bed.settle();
    assert!(bed.volume().is_settled() && !bed.volume().wants_step(), "nothing to do at once");
    let retry_ns = bed.volume().retry_at_ns().expect("a time to ask again");
    assert!(retry_ns > bed.now_ns);
    assert_eq!((bed.read(0, 1).bytes, bed.volume().health()), (filled(PAGE, 0), Health::Sound));
    let before = bed.volume().stats().checkpoints;
    bed.now_ns = retry_ns;
    bed.settle();
    assert!(!bed.volume().wants_step() && bed.volume().retry_at_ns() > Some(retry_ns), "still no room");
    disk.limit(None);
    bed.now_ns = bed.volume().retry_at_ns().expect("a time to ask again");
    bed.settle();
    assert_eq!((bed.volume().stats().checkpoints, bed.volume().retry_at_ns()), (before + 1, None));
    for page in 0..end {
        assert_eq!(bed.read(page, 1).bytes, filled(PAGE, page as u8));
    }
    bed.kill();
}

#[test]
fn trimmed_pages_go_back_to_the_disk() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::open(&disk, Config { reuse_pages_max: 8, ..small() }).expect("opens");
    for page in 0..500 {
        assert_eq!(bed.write(page, &filled(PAGE, 1)), Status::Ok);
    }
    bed.checkpoint();
    let before = disk.pages();
    assert_eq!(bed.run(Op::Discard, 0, 500, None).status, Status::Ok);
    bed.checkpoint();
    bed.settle();
    assert!(disk.pages() < before - 400, "{} of {before} pages", disk.pages());
    assert!(bed.volume().stats().slots_punched > 400);
    assert!(bed.read(0, 256).zeroes);
    bed.kill();
}

#[test]
fn many_pages_that_are_trimmed_go_back_without_waiting_for_the_log() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::open(&disk, Config { reuse_pages_max: 8, ..small() }).expect("opens");
    for page in 0..500 {
        assert_eq!(bed.write(page, &filled(PAGE, 1)), Status::Ok);
    }
    bed.checkpoint();
    let (before, checkpoints) = (disk.pages(), bed.volume().stats().checkpoints);
    for first in (0..500).step_by(100) {
        assert_eq!(bed.run(Op::Discard, first, 100, None).status, Status::Ok);
    }
    bed.settle();
    assert!(disk.pages() < before - 400, "{} of {before} pages", disk.pages());
    assert!(bed.volume().stats().checkpoints > checkpoints);
    bed.kill();
}

#[test]
fn random_small_writes_take_little_more_than_their_payload() {
    let disk = disk(1 << 40, BlockSize::B4096);
    let config = Config { log_segment_bytes: 256 << 10, extent_bytes: 8 << 20, ..small() };
    let mut bed = Bed::open(&disk, config).expect("opens");
    let (count, stride) = (4000_u64, (1_u64 << 28) / 4000);
    for number in 0..count {
        // Far apart and in no order: each in a chunk of its own.
        let page = (number * 1237 % count) * stride;
        assert_eq!(bed.write(page, &filled(PAGE, 5)), Status::Ok);
    }
    bed.checkpoint();
    let ratio = disk.pages() as f64 / count as f64;
    assert!(ratio <= 1.25, "{ratio} times the payload");
    bed.kill();
}

#[test]
fn restarts_do_not_eat_the_disk() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut most = 0;
    for round in 0..30_u8 {
        let mut bed = Bed::new(&disk);
        for page in 0..100 {
            assert_eq!(bed.write(page, &filled(PAGE, round)), Status::Ok);
        }
        bed.checkpoint();
        bed.settle();
        if round == 3 {
            most = disk.pages();
        }
        bed.kill();
    }
    assert!(disk.pages() <= most + 40, "{} pages, {most} after three restarts", disk.pages());
}

/// Decision 055: also an owner whose number is not the one before.
#[test]
fn an_owner_is_fenced_by_any_higher_grant() {
    let disk = disk(1 << 20, BlockSize::B4096);
    let under = |grant| Bed::open(&disk, Config { grant: Some(grant), ..small() }).expect("it opens");
    let mut owners: Vec<Bed> = Vec::new();
    for (grant, value) in [(1, 1), (2, 2), (2, 3), (7, 4)] {
        let mut owner = under(grant);
        assert_eq!(owner.write(0, &filled(PAGE, value)), Status::Ok);
        for old in &mut owners {
            assert_eq!(old.write(0, &filled(PAGE, 9)), Status::Fenced, "before grant {grant}");
            assert_eq!(old.flush(), Status::Fenced, "before grant {grant}");
        }
        assert_eq!(owner.read(0, 1).bytes, filled(PAGE, value));
        owners.push(owner);
    }
    owners.into_iter().for_each(|owner| drop(owner.kill()));
}

/// Decision 044: an epoch on the media is a grant and the number of an opening under it.
#[test]
fn a_grant_opens_again_under_itself_and_never_over_a_higher_one() {
    use crate::Directory;
    let disk = disk(1 << 20, BlockSize::B4096);
    let under = |grant| Bed::open(&disk, Config { grant: Some(grant), ..small() });
    let epoch = |bed: Result<Bed, OpenError>| bed.expect("it opens").recovery.epoch.0;
    assert_eq!(epoch(under(1)), (1 << 16) + 1);
    assert_eq!(epoch(under(1)), (1 << 16) + 2, "its own restart");
    assert_eq!(epoch(under(3)), (3 << 16) + 1);
    let zombie = under(1).err().expect("it was granted to another since");
    assert!(matches!(zombie, OpenError::Superseded { there: 3, ours: 1 }), "{zombie}");
    // Nobody opens a volume so often; the last opening is made by hand.
    disk.create(FileName::Epoch(Epoch((4 << 16) - 1))).expect("a claim");
    let exhausted = under(3).err().expect("there is no number left");
    assert!(matches!(exhausted, OpenError::Exhausted(3)), "{exhausted}");
    assert_eq!(epoch(under(4)), (4 << 16) + 1);
}

#[test]
fn room_that_is_asked_for_is_taken_though_there_is_enough_or_refused() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    assert_eq!(bed.write(0, &filled(PAGE, 1)), Status::Ok);
    let before = bed.volume().stats();
    bed.volume().expand().expect("it is sound");
    assert_eq!(bed.volume().expanded(), None);
    bed.step();
    assert!(bed.settle().is_empty());
    assert_eq!(bed.volume().expanded(), Some(Status::Ok));
    let slice = (small().expand_bytes / PAGE_BYTES as u64) as u32;
    let after = bed.volume().stats();
    assert!(after.pages_free >= before.pages_free + slice, "{before:?} {after:?}");
    disk.limit(Some(disk.pages()));
    bed.volume().expand().expect("it is sound");
    assert!(bed.settle().is_empty());
    assert_eq!(bed.volume().expanded(), Some(Status::NoSpace));
    assert_eq!(bed.write(8, &filled(PAGE, 2)), Status::Ok, "what was taken before is there");
    // Whoever asks again is not told what was so before.
    disk.limit(None);
    bed.volume().expand().expect("it is sound");
    assert!(bed.settle().is_empty());
    assert_eq!(bed.volume().expanded(), Some(Status::Ok));
    bed.kill();
}

#[test]
fn a_volume_on_a_full_disk_is_opened_again_and_again_and_overwritten() {
    let mut disk = disk(64 << 20, BlockSize::B4096);
    disk.limit(Some(600));
    let mut bed = Bed::new(&disk);
    let end = fill(&mut bed, 0);
    assert_eq!(bed.flush(), Status::Ok);
    for round in 1..=5_u8 {
        bed.kill();
        disk = disk.crash(false, |_, _| false);
        bed = Bed::new(&disk);
        for page in 0..end {
            let before = (page as u8).wrapping_add(round - 1);
            assert_eq!(bed.read(page, 1).bytes, filled(PAGE, before), "round {round}, page {page}");
            let value = filled(PAGE, (page as u8).wrapping_add(round));
            assert_eq!(bed.write(page, &value), Status::Ok, "round {round}, page {page}");
            bed.now_ns += 1_000_000;
        }
        assert_eq!(bed.flush(), Status::Ok);
    }
    assert!(disk.pages() <= 600);
    bed.kill();
}

#[test]
fn a_disk_without_room_for_a_name_breaks_nothing() {
    let disk = disk(64 << 20, BlockSize::B4096);
    let mut bed = Bed::new(&disk);
    let end = 100;
    for page in 0..end {
        assert_eq!(bed.write(page, &filled(PAGE, page as u8)), Status::Ok);
    }
    disk.refuse_creates(true);
    let mut refused = false;
    for round in 1..20_u8 {
        for page in 0..end {
            match bed.write(page, &filled(PAGE, (page as u8).wrapping_add(round))) {
                Status::Ok => {}
                Status::NoSpace => refused = true,
                other => panic!("round {round}, page {page}: {other}"),
            }
            bed.now_ns += 1_000_000;
        }
    }
    assert!(refused, "the log cannot go on for ever in one file");
    assert_eq!(bed.volume().health(), Health::Sound);
    assert_eq!(bed.read(0, 1).status, Status::Ok);
    disk.refuse_creates(false);
    bed.now_ns += 10_000_000_000;
    for page in 0..end {
        assert_eq!(bed.write(page, &filled(PAGE, 7)), Status::Ok);
    }
    assert_eq!(bed.flush(), Status::Ok);
    bed.kill();
    assert_eq!(store::check(&disk).expect("readable").problem_count, 0);
}
