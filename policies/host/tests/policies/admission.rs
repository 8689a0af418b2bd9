//! Who is admitted, and what those are told who are not.

use ed25519_dalek::{Signer, SigningKey};
use host::{AdmitError, Candidate, Gate, Limits, Trust};
use verdict::Kind;

use crate::{engine, pairs};

fn admit(component: &[u8]) -> Result<String, AdmitError> {
    let candidate = Candidate { component, ..Candidate::default() };
    Gate::default().admit(&engine(), &candidate).map(|policy| policy.id().name.clone())
}

/// The same policy, as if it had been built against another version of wit/.
fn of_version(version: &str) -> Vec<u8> {
    let component = shipped::component("leasing-capacity-weighted").expect("built with this test");
    let (from, to) = (b"@0.1.0", version.as_bytes());
    assert_eq!(from.len(), to.len());
    let mut bytes = component.to_vec();
    let mut changed = 0;
    for at in 0..bytes.len() - from.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + from.len()].copy_from_slice(to);
            changed += 1;
        }
    }
    assert!(changed > 0);
    bytes
}

#[test]
fn the_right_minor_version_is_admitted_and_the_wrong_major_is_not() {
    assert_eq!(admit(&of_version("@0.1.7")).expect("0.1.7 runs on 0.1"), "leasing-capacity-weighted");
    for version in ["@0.2.0", "@1.0.0", "@0.0.9"] {
        let why = admit(&of_version(version)).expect_err("another version").to_string();
        assert!(why.contains(&version[1..]) && why.contains("this host runs 0.1.x"), "{why}");
    }
}

#[test]
fn nothing_but_log_may_be_imported() {
    let wasi = r#"(component
        (import "wasi:clocks/wall-clock@0.2.0" (instance (export "now" (func (result u64))))))"#;
    let why = admit(&wat::parse_str(wasi).expect("valid text")).expect_err("it has a clock").to_string();
    assert!(why.contains("wasi:clocks/wall-clock@0.2.0") && why.contains("wasm32-unknown-unknown"), "{why}");
    let other = r#"(component (import "random" (func (result u64))))"#;
    let why = admit(&wat::parse_str(other).expect("valid text")).expect_err("it has dice").to_string();
    assert!(why.contains("imports `random`, and the only import there is is `log`"), "{why}");
    let callable = r#"(component
        (import "tidegate:policy/types@0.1.0" (instance (export "now" (func (result u64))))))"#;
    let why = admit(&wat::parse_str(callable).expect("valid text")).expect_err("types cannot be called");
    assert!(matches!(why, AdmitError::Import { .. }), "{why}");
}

#[test]
fn what_is_no_policy_is_refused() {
    assert!(matches!(admit(b"not WebAssembly"), Err(AdmitError::Compile(_))));
    let empty = wat::parse_str("(component)").expect("valid text");
    assert!(matches!(admit(&empty), Err(AdmitError::Export { .. })));
    let vast = vec![0; Limits::default().component_bytes + 1];
    assert!(matches!(admit(&vast), Err(AdmitError::Size { .. })));
}

#[test]
fn an_unknown_key_and_a_fault_on_golden_vectors_are_refused_with_their_reason() {
    let engine = engine();
    let component = shipped::component("misbehaving").expect("built with this test");
    let why = |config: &[(&str, &str)]| {
        let candidate = Candidate { component, signature: None, config: pairs(config) };
        Gate::default().admit(&engine, &candidate).expect_err("it misbehaves at once").to_string()
    };
    assert!(why(&[("folt", "panic")]).contains("there is no key `folt`; there are: fault, after"));
    assert!(why(&[("after", "many")]).contains("`after = many` is not a value of this key"));
    assert!(why(&[("fault", "init")]).contains("told to fail"));
    let golden = why(&[("fault", "lie-sum")]);
    assert!(golden.contains("golden vector") && golden.contains("`update-weights`"), "{golden}");
    let long = "x".repeat(5_000);
    assert!(why(&[("fault", &long)]).contains("at most 4,096 bytes"));
}

#[test]
fn only_signed_policies_run_where_keys_are_given() {
    let component = shipped::component("leasing-pack-tight").expect("built with this test");
    let (ours, theirs) = (SigningKey::from_bytes(&[7; 32]), SigningKey::from_bytes(&[8; 32]));
    let trust = Trust::only(&[ours.verifying_key().to_bytes()]).expect("a key");
    let gate = Gate { trust, cache: None };
    let engine = engine();
    let admit = |signature: Option<&[u8]>| {
        gate.admit(&engine, &Candidate { component, signature, config: vec![] }).map(|policy| policy.kind())
    };
    assert_eq!(admit(Some(&ours.sign(component).to_bytes())).expect("signed by us"), Kind::Leasing);
    assert!(admit(None).expect_err("unsigned").to_string().contains("only signed policies run here"));
    for signature in [theirs.sign(component).to_bytes(), ours.sign(b"another component").to_bytes(), [0; 64]]
    {
        assert!(matches!(admit(Some(&signature)), Err(AdmitError::Trust(_))));
    }
    assert!(matches!(admit(Some(b"short")), Err(AdmitError::Trust(_))));
    // Half of all numbers are no point of the curve.
    assert!((0..=255).any(|byte| Trust::only(&[[byte; 32]]).is_err()));
}
