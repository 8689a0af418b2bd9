//! Compiled code is taken from the cache only while it is what was written there, by us.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use host::{Admission, Cache, Candidate, Digest, Engine, Gate};

use crate::{Folder, engine};

fn admit(engine: &Engine, cache: &Cache) -> Admission {
    let component = shipped::component("leasing-pack-tight").expect("built with this test");
    let gate = Gate { cache: Some(cache.clone()), ..Gate::default() };
    let candidate = Candidate { component, ..Candidate::default() };
    gate.admit(engine, &candidate).expect("it is sound in any case").admission().clone()
}

#[test]
fn compiled_code_is_kept_and_what_is_damaged_is_compiled_again() {
    let folder = Folder::new("cache");
    let cache = Cache::open(&folder.0.join("compiled")).expect("a new folder");
    let engine = engine();
    let component = shipped::component("leasing-pack-tight").expect("built with this test");
    let file = cache.file(&engine, Digest::of(component));

    assert!(!admit(&engine, &cache).from_cache);
    assert!(admit(&engine, &cache).from_cache);

    let sound = fs::read(&file).expect("it was kept");
    for damage in [0, 40, sound.len() / 2, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[damage] ^= 1;
        fs::write(&file, &bytes).expect("ours");
        let admission = admit(&engine, &cache);
        assert!(!admission.from_cache, "byte {damage}");
        assert!(admission.cache_refused.expect("it says so").contains("is damaged"), "byte {damage}");
        assert!(admit(&engine, &cache).from_cache, "it was written anew");
    }
    for length in [0, 10, 32, sound.len() - 1] {
        fs::write(&file, &sound[..length]).expect("ours");
        assert!(!admit(&engine, &cache).from_cache, "cut to {length}");
    }
    // Code of another component under this name, whole as it may be, is not this component's.
    let leftovers = fs::read_dir(file.parent().expect("in a folder")).expect("readable").count();
    assert_eq!(leftovers, 1, "no file is left half-written");
}

#[test]
fn code_that_others_may_write_is_not_run() {
    let folder = Folder::new("cache-of-others");
    let path = folder.0.join("compiled");
    let cache = Cache::open(&path).expect("a new folder");
    let engine = engine();
    admit(&engine, &cache);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("ours");
    let admission = admit(&engine, &cache);
    assert!(!admission.from_cache);
    assert!(admission.cache_refused.expect("it says so").contains("may be written by others"));
    assert!(Cache::open(&path).is_err());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("ours");
    let file = cache.file(&engine, Digest::of(shipped::component("leasing-pack-tight").expect("built")));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("ours");
    assert!(!admit(&engine, &cache).from_cache);
}
