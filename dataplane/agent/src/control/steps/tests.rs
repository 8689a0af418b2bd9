//! Work that is stopped rests after the piece under way, and can be done again.

use contract::{Epoch, NodeId, OperationId};
use engine::Offline;
use engine::volume::format::LEAF_BYTES;

use super::*;

const VOLUME_BYTES: u64 = 16 << 20;
const PIECES: usize = 8;

struct Root(std::path::PathBuf);

impl Root {
    /// A directory with a volume of [`PIECES`] MiB of data.
    fn new(name: &str) -> Root {
        let path = std::env::temp_dir().join(format!("tidegate-steps-{name}-{}", std::process::id()));
        let there = store::create(&path, VOLUME_BYTES, BlockSize::B4096).expect("created");
        let mut writer = Offline::open(&there, None).expect("opened");
        let bytes = vec![0x5a; CHUNK_BYTES];
        (0..PIECES).for_each(|at| writer.write((at * CHUNK_BYTES) as u64, &bytes).expect("written"));
        writer.close().expect("closed");
        Root(path)
    }

    /// Bytes of its files that are not zero.
    fn data_bytes(&self) -> usize {
        let files = fs::read_dir(&self.0).expect("there").map(|entry| entry.expect("a file").path());
        files.map(|file| fs::read(file).expect("read").iter().filter(|byte| **byte == 0x5a).count()).sum()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn job(step: NodeStep, rate_bytes_per_s: u64) -> (Instruction, Arc<Job>) {
    let instruction = Instruction {
        key: InstructionKey { operation: OperationId(1), step: 0, tries: 0 },
        step,
        volume: VolumeId(1),
        pool: "default".parse().expect("a name"),
        size_bytes: VOLUME_BYTES,
        from_volume: None::<VolumeId>,
        from_node: None::<NodeId>,
        from_name: None,
        from_addresses: Vec::new(),
        epoch: Epoch(1),
        rate_bytes_per_s,
        lease: Some(LeaseId(1)),
    };
    let (job, _) = Jobs::default().begin(&instruction).expect("there is room");
    (instruction, job)
}

/// Begins work that would take days, stops it once it has done something; what it had done when it rested.
fn stopped(root: &Root, step: NodeStep) -> u64 {
    let (instruction, job) = job(step, 1);
    let works = std::thread::spawn({
        let (path, job) = (root.0.clone(), Arc::clone(&job));
        move || carry_out(&instruction, &path, false, &job)
    });
    let done = || match job.progress() {
        Done::Running { done_bytes, .. } => done_bytes,
        done => panic!("{done:?}"),
    };
    while done() == 0 && !works.is_finished() {
        std::thread::yield_now();
    }
    job.stop();
    let outcome = works.join().expect("no panic");
    assert!(matches!(outcome, Err(Failure { again: true, .. })), "it may be tried again");
    done()
}

#[test]
fn a_scrub_that_is_stopped_rests_after_a_piece_and_can_be_done_again() {
    let root = Root::new("scrub");
    let done = stopped(&root, NodeStep::Scrub);
    assert!(done <= LEAF_BYTES as u64, "{done} bytes were read");
    let (instruction, job) = job(NodeStep::Scrub, u64::MAX);
    assert!(carry_out(&instruction, &root.0, false, &job).is_ok());
    let Done::Running { done_bytes, total_bytes } = job.progress() else { panic!("it is only over later") };
    assert!(total_bytes == (PIECES * CHUNK_BYTES) as u64 && done_bytes >= total_bytes, "{done_bytes}");
}

#[test]
fn a_wipe_that_is_stopped_rests_after_a_piece_and_can_be_done_again() {
    let root = Root::new("wipe");
    let before = root.data_bytes();
    let done = stopped(&root, NodeStep::Wipe);
    assert!(done <= CHUNK_BYTES as u64, "{done} bytes were written");
    assert!(root.data_bytes() >= before - CHUNK_BYTES, "what was not wiped is there");
    let (instruction, job) = job(NodeStep::Wipe, u64::MAX);
    assert!(carry_out(&instruction, &root.0, false, &job).is_ok());
    assert_eq!(root.data_bytes(), 0);
}
