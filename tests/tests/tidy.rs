//! Tidiness as a test: the arrows between crates, where `unsafe` may stand, module documentation, file
//! length, and that every promise in docs/SPECIFICATION.md names a test that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A -> B: crate A may use crate B. Anything not listed is refused (ARCHITECTURE.md, "Arrows").
const ARROWS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("frame", &[]),
    ("block", &[]),
    ("media", &["frame", "wire", "block"]),
    ("volume", &["frame", "wire", "block"]),
    ("session", &["frame", "wire", "block"]),
    ("throttle", &[]),
    ("trace", &["block"]),
    ("port", &["frame", "wire"]),
    ("overlay", &["frame", "wire"]),
    (
        "engine",
        &["session", "volume", "media", "block", "overlay", "throttle", "trace", "port", "frame", "wire"],
    ),
    ("agent", &["engine", "contract", "southbound"]),
    ("store", &[]),
    ("southbound", &["contract"]),
    ("server", &["control-core", "contract", "store", "southbound", "host", "shipped", "verdict"]),
    ("ctl", &["contract", "host", "verdict"]),
    ("tidegate-dataplane", &["agent", "engine", "port"]),
    ("verdict", &[]),
    ("contract", &[]),
    ("control-core", &["contract", "verdict"]),
    ("host", &["verdict"]),
    ("shipped", &[]),
];

/// Crates that may use everything and that nothing may use.
const OUTSIDE: &[&str] = &["bench", "policy-bench", "control-bench", "sim", "tests", "xtask"];

/// The only crates with `unsafe`; every other forbids it.
const UNSAFE: &[&str] = &["frame", "port", "media"];

/// The only other file with it, in one place: compiled policies are taken from a cache.
const UNSAFE_FILE: &str = "policies/host/src/cache.rs";

/// The only crates that may depend on tokio; `store` only where it is in etcd.
const TOKIO: &[&str] = &["agent", "southbound", "server", "store", "ctl", "bench", "tests"];

/// Longest source file; tests apart. A sitting is about 600 lines.
const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate").to_owned()
}

struct Package {
    name: String,
    folder: PathBuf,
    dependencies: Vec<String>,
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .map(|package| Package {
            name: text(&package["name"]),
            folder: Path::new(&text(&package["manifest_path"])).parent().expect("has a folder").to_owned(),
            dependencies: package["dependencies"]
                .as_array()
                .expect("a list of dependencies")
                .iter()
                .filter(|dependency| dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]))
                .collect(),
        })
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.expect("readable entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !["target", "corpus", "artifacts", ".git"].contains(&name.as_str()) {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn arrows_between_crates_are_those_of_the_architecture() {
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for package in &packages {
        let name = package.name.as_str();
        for dependency in package.dependencies.iter().map(String::as_str) {
            assert!(
                dependency != "tokio" || TOKIO.contains(&name),
                "{name} uses tokio; only {TOKIO:?} may (no async runtime on a data-plane worker)"
            );
            if !ours.contains(dependency) || OUTSIDE.contains(&name) {
                continue;
            }
            let may_use = allowed
                .get(name)
                .unwrap_or_else(|| panic!("crate {name} has no row in ARROWS; add one and say why"));
            assert!(
                may_use.contains(&dependency),
                "{name} -> {dependency} is not an arrow of the architecture"
            );
        }
    }
}

#[test]
fn unsafe_stands_only_where_allowed() {
    let mut allowed = Vec::new();
    for package in packages() {
        if UNSAFE.contains(&package.name.as_str()) {
            allowed.push(package.folder);
            continue;
        }
        let entry = ["src/lib.rs", "src/main.rs"]
            .iter()
            .map(|file| package.folder.join(file))
            .find(|file| file.exists())
            .expect("a crate has an entry file");
        let text = fs::read_to_string(&entry).expect("readable");
        // A `deny` can be lifted in one place, and only one file may do that.
        let lifts = root().join(UNSAFE_FILE).starts_with(&package.folder);
        assert!(
            text.contains("#![forbid(unsafe_code)]") || lifts && text.contains("#![deny(unsafe_code)]"),
            "{} lacks #![forbid(unsafe_code)]; unsafe belongs to {UNSAFE:?}",
            entry.display()
        );
    }
    // Tests and benches are crates of their own, which that attribute does not reach.
    for file in sources(&root()) {
        let text = fs::read_to_string(&file).expect("readable");
        if let Some(line) = text.lines().position(is_unsafe) {
            let once = text.lines().filter(|line| is_unsafe(line)).count() == 1;
            let inside = allowed.iter().any(|folder| file.starts_with(folder))
                || once && file == root().join(UNSAFE_FILE);
            assert!(inside, "{}, line {}: unsafe belongs to {UNSAFE:?}", file.display(), line + 1);
        }
    }
}

/// Whether a line has the keyword, in code and not in a text or a comment.
fn is_unsafe(line: &str) -> bool {
    let without_texts: String = line.replace("\\\"", "").split('"').step_by(2).collect();
    let code = without_texts.split("//").next().unwrap_or("");
    code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == "unsafe")
}

#[test]
fn the_keyword_is_found_and_its_name_is_not() {
    assert!(is_unsafe("    let page = unsafe { map(\"/dev/zero\") }; // why"));
    assert!(is_unsafe("unsafe impl Send for Slab {}"));
    assert!(!is_unsafe("#![forbid(unsafe_code)] // no unsafe here"));
    assert!(!is_unsafe("    assert!(safe, \"unsafe\");"));
}

#[test]
fn every_module_says_what_it_is() {
    for file in sources(&root()) {
        let text = fs::read_to_string(&file).expect("readable");
        let first =
            text.lines().find(|line| !line.starts_with("#!") && !line.trim().is_empty()).unwrap_or("");
        assert!(first.starts_with("//!"), "{} does not open with a //! module comment", file.display());
    }
}

#[test]
fn files_can_be_read_in_a_sitting() {
    for file in sources(&root()) {
        let is_test = file.components().any(|part| part.as_os_str() == "tests")
            || file.file_name().is_some_and(|name| name.to_string_lossy().contains("tests"));
        let lines = fs::read_to_string(&file).expect("readable").lines().count();
        assert!(is_test || lines <= FILE_LINES_MAX, "{}: {lines} lines; split it", file.display());
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let specification = fs::read_to_string(root().join("docs/SPECIFICATION.md")).expect("the specification");
    let mut code = String::new();
    for file in sources(&root()) {
        code.push_str(&fs::read_to_string(file).expect("readable"));
    }
    let mut promises = 0;
    for line in specification.lines().filter(|line| line.starts_with("| P")) {
        promises += 1;
        let tests = line.rsplit('|').nth(1).unwrap_or("");
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test named in: {line}");
        for name in names.iter().filter(|name| !name.starts_with("cargo ")) {
            let function = name.rsplit("::").next().unwrap_or(name);
            assert!(code.contains(&format!("fn {function}")), "{name} does not exist; promised in: {line}");
        }
    }
    assert!(promises > 0, "docs/SPECIFICATION.md lists no promise");
}
