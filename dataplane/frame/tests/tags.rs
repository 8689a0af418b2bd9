//! As many slabs as there are tags: a process of its own, since the tags are the process's.
#![allow(missing_docs)]

use frame::{Slab, SlabConfig, SlabError};

#[test]
#[cfg_attr(miri, ignore = "256 slabs are slow")]
fn the_257th_slab_is_refused_until_one_goes() {
    let mut slabs = Vec::new();
    let error = loop {
        match Slab::new(SlabConfig { frames: 1, jumbo_frames: 0, hugepages: false }) {
            Ok(slab) => slabs.push(slab),
            Err(error) => break error,
        }
        assert!(slabs.len() <= 256);
    };
    assert!(matches!(error, SlabError::Tags), "{error}");
    slabs.pop();
    assert!(Slab::new(SlabConfig { frames: 1, jumbo_frames: 0, hugepages: false }).is_ok());
}
