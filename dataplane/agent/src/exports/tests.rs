//! What only the inside shows: whether a volume that was left out is touched.

use std::collections::BTreeSet;
use std::ffi::OsString;

use engine::block::BlockSize;
use engine::volume::store;

use super::*;
use crate::config;

/// Each opening claims an epoch, which fences whoever serves the volume: only who asks for it gets one.
#[test]
fn a_set_of_the_control_plane_does_not_open_what_was_left_out_and_a_reload_does() {
    let folder = std::env::temp_dir().join(format!("tidegate-left-out-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
    let path = folder.join("disk");
    store::create(&path, 64 << 20, BlockSize::B4096).expect("made");
    let text =
        format!("[[export]]\nname = \"disk\"\nmedium = \"file\"\ndirectory = \"{}\"\n", path.display());
    let file = config::parse(&text).expect("it is TOML");
    let wanted = config::exports::wanted(&file).expect("it is sound");
    let files = || -> BTreeSet<OsString> {
        let entries = std::fs::read_dir(&path).expect("it is there");
        entries.map(|entry| entry.expect("it is there").file_name()).collect()
    };
    let controllers = SubsystemLimits::default();
    let settings = Settings { hugepages: false, memory_bytes: 64 << 20, controllers, can_serve: true };
    let exports = Exports::new(settings);
    // As after a start at which it could not be opened; by now it could.
    let left_out = LeftOut { wanted: wanted[0].clone(), why: ServeError::Missing(path.clone()) };
    exports.left_out.store(Arc::new(vec![Arc::new(left_out)]));
    exports.table.store(Arc::new(Table::new(1, Vec::new())));
    let made = files();
    for _ in 0..3 {
        let change = exports.prepare(wanted.clone(), Retry::No).expect("it is no reason to refuse the set");
        assert_eq!((change.steps.len(), change.left_out.len()), (0, 1));
    }
    assert_eq!(files(), made, "nobody claimed it");
    let change = exports.prepare(wanted, Retry::Yes).expect("it can be opened");
    assert_eq!((change.steps.len(), change.left_out.len()), (1, 0));
    assert_ne!(files(), made);
    drop(change);
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
}
