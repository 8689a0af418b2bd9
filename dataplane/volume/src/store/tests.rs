//! Volumes on the host's file system: made, listed, dumped, resized, deleted.

use block::FileName;

use super::*;

struct Root(std::path::PathBuf);

impl Root {
    fn new(name: &str) -> Root {
        let path = std::env::temp_dir().join(format!("tidegate-store-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Root(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_volume_lives_from_create_to_delete() {
    let root = Root::new("life");
    let path = root.0.join("one");
    let directory = create(&path, 1 << 20, BlockSize::B512).expect("created");
    fs::create_dir(root.0.join("not-a-volume")).expect("a directory");
    let listed = list(&root.0).expect("readable");
    assert_eq!(listed.len(), 1);
    let summary = listed[0].summary.as_ref().expect("whole");
    assert_eq!((listed[0].name.as_str(), summary.blocks, summary.epoch), ("one", 2048, Epoch(1)));
    let checked = check(&directory).expect("whole");
    assert_eq!((checked.problem_count, checked.pages), (0, 0));
    let recovery = resize(&directory, &Config::default(), 4096).expect("resized");
    assert_eq!(recovery.epoch, Epoch(2));
    assert_eq!(super::summary(&directory).expect("whole").blocks, 4096);
    let mut text = Vec::new();
    dump(&directory, &mut text).expect("dumped");
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("4096 blocks of 512 bytes") && text.contains("sealed epoch 1"), "{text}");
    delete(&directory).expect("deleted");
    assert!(!path.exists());
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let root = Root::new("sizes");
    for bytes in [0, 4095, 4097, VOLUME_BYTES_MAX + 4096] {
        let directory = HostDirectory::open(&root.0).expect("there");
        let error = create_in(&directory, [1; 16], bytes, BlockSize::B4096).expect_err("refused");
        assert!(matches!(error, CreateError::Size { .. }), "{error}");
    }
    let directory = create(&root.0.join("v"), VOLUME_BYTES_MAX, BlockSize::B4096).expect("the largest");
    for blocks in [0, (VOLUME_BYTES_MAX >> 12) + 1, u64::MAX] {
        let error = resize(&directory, &Config::default(), blocks).expect_err("refused");
        assert!(matches!(error, OpenError::Size), "{error}");
    }
}

#[test]
fn a_name_in_use_and_a_path_that_is_not_there_are_refused() {
    let root = Root::new("names");
    let error = create(&root.0, 4096, BlockSize::B4096).expect_err("refused");
    assert!(matches!(error, CreateError::Exists(_)), "{error}");
    let error = create(&root.0.join("a/b"), 4096, BlockSize::B4096).expect_err("refused");
    assert!(matches!(error, CreateError::Files(OpenError::Io { .. })), "{error}");
    assert!(HostDirectory::open(&root.0.join("nowhere")).is_err());
}

#[test]
fn what_is_no_volume_or_has_no_checkpoint_says_so() {
    let root = Root::new("damaged");
    let directory = create(&root.0.join("v"), 4096, BlockSize::B4096).expect("created");
    directory.remove(FileName::Checkpoint { epoch: Epoch(1), side: 0 }).expect("removed");
    let error = check(&directory).expect_err("refused");
    assert!(matches!(error, OpenError::NoCheckpoint), "{error}");
    directory.write(FileName::Superblock, 0, &[0; 64]).expect("written");
    let error = check(&directory).expect_err("refused");
    assert!(matches!(error, OpenError::Format { .. }), "{error}");
    directory.remove(FileName::Superblock).expect("removed");
    let error = check(&directory).expect_err("refused");
    assert!(matches!(error, OpenError::Io { .. }), "{error}");
    let error = dump(&directory, &mut Vec::new()).expect_err("refused");
    assert!(matches!(error, DumpError::Open(_)), "{error}");
}

/// A directory of which only some files can be read.
struct Glance(HostDirectory);

impl Directory for Glance {
    fn list(&self) -> io::Result<Vec<FileName>> {
        self.0.list()
    }

    fn create(&self, name: FileName) -> io::Result<()> {
        self.0.create(name)
    }

    fn len(&self, name: FileName) -> io::Result<u64> {
        self.0.len(name)
    }

    fn read(&self, name: FileName, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        match name {
            FileName::Superblock | FileName::Checkpoint { .. } => self.0.read(name, offset, into),
            other => panic!("{other} was read"),
        }
    }

    fn write(&self, name: FileName, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(name, offset, bytes)
    }

    fn sync(&self, name: FileName) -> io::Result<()> {
        self.0.sync(name)
    }

    fn allocate(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.allocate(name, offset, bytes)
    }

    fn punch(&self, name: FileName, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.punch(name, offset, bytes)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.0.remove(name)
    }
}

/// A node looks at each volume that it stands by for whenever it is told anything, while others write them.
#[test]
fn a_glance_reads_nothing_that_grows_with_what_was_written() {
    let root = Root::new("glance");
    let directory = create(&root.0.join("one"), 1 << 20, BlockSize::B4096).expect("created");
    let summary = super::summary(&Glance(directory)).expect("whole");
    assert_eq!((summary.blocks, summary.size), (256, BlockSize::B4096));
}
