//! One suite for every store: what etcd promises of the part that is used here.

#[cfg(feature = "etcd")]
mod etcd;
mod kill;
#[cfg(feature = "etcd")]
mod server;
mod suite;

use store::Local;

#[test]
fn a_store_in_memory_is_a_store() {
    suite::all(&|| Local::in_memory());
}

#[test]
fn a_store_in_a_file_is_a_store() {
    let folder = suite::Folder::new("conformance");
    let fresh = std::cell::Cell::new(0);
    suite::all(&|| {
        fresh.set(fresh.get() + 1);
        Local::open(&folder.0.join(format!("{}.redb", fresh.get()))).unwrap()
    });
}
