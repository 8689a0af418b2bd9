//! What an author does without a server.

use std::path::Path;
use std::process::Command;

use host::author::{AuthorError, BENCH_ROWS, bench, check, component_of, new, replay_file};
use host::{Engine, Limits, Options, Start};
use verdict::Kind;

use crate::{Folder, Rig, engine, pairs};

fn write_component(folder: &Folder, name: &str) -> std::path::PathBuf {
    let path = folder.0.join(format!("{name}.wasm"));
    std::fs::write(&path, shipped::component(name).expect("built with this test")).expect("ours");
    path
}

#[test]
fn a_new_policy_of_each_kind_builds_and_is_admitted() {
    let folder = Folder::new("author-new");
    for kind in Kind::ALL {
        let name = format!("my-{kind}");
        let source = new(kind, &name, &folder.0).expect("a new folder");
        assert!(matches!(new(kind, &name, &folder.0), Err(AuthorError::Exists(_))));
        // The lock of the shipped policies has what a new one needs, so nothing is looked up.
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        std::fs::copy(policies.join("Cargo.lock"), source.join("Cargo.lock")).expect("ours");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../policies");
        let output = Command::new(env!("CARGO"))
            .args(["build", "--release", "--offline", "--quiet", "--target", "wasm32-unknown-unknown"])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(&source)
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let module = target.join(format!("wasm32-unknown-unknown/release/my_{kind}.wasm"));
        let policy = check(&engine(), &module, vec![]).expect("it is admitted");
        assert_eq!((policy.kind(), policy.id().name.as_str()), (kind, name.as_str()));
    }
    for name in ["", "Mine", "7up", "a/b", "-x", "ä"] {
        assert!(matches!(new(Kind::Leasing, name, &folder.0), Err(AuthorError::Name(_))), "{name}");
    }
}

#[test]
fn check_says_what_admission_says() {
    let folder = Folder::new("author-check");
    let path = write_component(&folder, "leasing-pack-tight");
    let policy = check(&engine(), &path, vec![]).expect("it is admitted");
    assert!(policy.admission().fuel_max > 0 && !policy.summary().is_empty());
    let refused = check(&engine(), &path, pairs(&[("fill-to", "7")])).unwrap_err().to_string();
    assert!(
        refused.contains("there is no key `fill-to`; there are: fill-to-ppm, spare-ppm, ttl-ms"),
        "{refused}"
    );
    let module = folder.0.join("module.wasm");
    std::fs::write(&module, wat::parse_str("(module)").expect("valid text")).expect("ours");
    let refused = component_of(&module).and_then(|_| check(&engine(), &module, vec![]));
    assert!(refused.is_err());
    assert!(matches!(component_of(&folder.0.join("none.wasm")), Err(AuthorError::File { .. })));
}

#[test]
fn bench_times_each_function_beside_the_native_default() {
    let folder = Folder::new("author-bench");
    let path = write_component(&folder, "migration-quiet-window");
    let policy = check(&engine(), &path, vec![]).expect("it is admitted");
    let timed = bench(&policy, &[10, 100], 20).expect("it answers");
    let functions: Vec<(&str, usize)> = timed.iter().map(|timed| (timed.function, timed.rows)).collect();
    let both = |rows| [("build-profile", rows), ("choose-time", rows)];
    assert_eq!(functions, [both(10), both(100)].concat());
    assert!(
        timed.iter().all(|timed| timed.decisions == 10 && timed.p50_ns > 0 && timed.p50_ns <= timed.p99_ns)
    );
}

#[test]
fn every_shipped_policy_decides_about_as_many_as_the_kit_measures_with_half_its_fuel() {
    let folder = Folder::new("author-sizes");
    let production = Engine::new(Limits::default()).expect("WebAssembly runs here");
    let mut most = Vec::new();
    for (name, _) in shipped::all() {
        let policy = check(&production, &write_component(&folder, name), vec![]).expect("it is admitted");
        // Twice, since what a policy remembers of the first time may cost it the second time.
        for timed in bench(&policy, &[*BENCH_ROWS.last().expect("sizes")], 4).expect("it answers") {
            most.push((timed.fuel_max, name, timed.function));
        }
    }
    most.sort_unstable();
    let limit = Limits::default().fuel / 2;
    assert!(most.last().is_some_and(|(fuel, ..)| *fuel <= limit), "at most {limit}: {most:?}");
}

#[test]
fn a_log_is_replayed_with_a_file_and_the_configuration_it_was_decided_with() {
    let folder = Folder::new("author-replay");
    let mut rig = Rig::with(Options { log: Some(folder.log()), ..Options::default() });
    let policy = rig.push("leasing-pack-tight", &[("ttl-ms", "7000")]);
    rig.policies.activate(&policy, Start::Fresh).expect("it starts");
    (0..50).for_each(|number| drop(rig.decide(Kind::Leasing, number)));
    let path = write_component(&folder, "leasing-pack-tight");
    let log = folder.log().folder;
    let same = replay_file(&engine(), &log, &path, None).expect("the log can be read");
    assert!(same.same_version && same.is_identical() && same.decisions == 50, "{same:?}");
    let other = replay_file(&engine(), &log, &path, Some(vec![])).expect("the log can be read");
    assert!(!other.same_version && other.different >= 25, "{other:?}");
}
