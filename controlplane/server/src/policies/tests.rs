//! What was chosen outlives a start with other components, and goes by nothing but another choice.

use std::time::Duration;

use contract::Alarm;
use ed25519_dalek::{Signer, SigningKey};
use host::{Digest, workload};
use store::Local;

use super::*;

const NAME: &str = "leasing-pack-tight";
const KIND: Kind = Kind::Leasing;

/// A folder and a store that outlive starts.
struct Ground {
    root: PathBuf,
    store: Arc<dyn Store>,
}

impl Ground {
    fn new(test: &str) -> Ground {
        let root = std::env::temp_dir().join(format!("tidegate-policies-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a folder");
        Ground { root, store: Arc::new(Local::in_memory()) }
    }

    fn open(&self, trust: Trust) -> Open {
        let (driver, seat) = Driver::new();
        let policies = Policies::open(&self.root, self.store.clone(), &driver, trust).expect("it starts");
        // As it does beside other work, so that nothing is waited for here.
        policies.push_shipped(|name| policies.0.host.find(name).is_none());
        assert!(shipped::all().all(|(name, _)| policies.0.host.find(name).is_some()));
        Open { policies, driver, seat }
    }

    fn path(&self, id: &host::PolicyId) -> PathBuf {
        self.root.join("policies").join(format!("{}-{}.wasm", id.digest, id.config.short()))
    }

    /// As if it was pushed so long after the beginning of time.
    fn date(&self, id: &host::PolicyId, after_s: u64) {
        let file = std::fs::File::options().write(true).open(self.path(id)).expect("it is kept");
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(after_s)).expect("it is ours");
    }

    fn chosen(&self) -> Option<Vec<u8>> {
        self.store.get(&stored::active_key(KIND)).expect("it is in memory").map(|entry| entry.value.to_vec())
    }

    /// Has the store say that this was chosen.
    fn choose(&self, id: &host::PolicyId) {
        let id = serde_json::to_vec(id).expect("texts");
        self.store
            .transact(&store::Transaction::new().put(stored::active_key(KIND), id))
            .expect("it is in memory");
    }

    /// Puts a component beside the store, as a version of this program that shipped it would.
    fn lay(&self, id: &host::PolicyId, component: &[u8], beside: &str) {
        let path = self.path(id);
        std::fs::write(path.with_extension("json"), beside).expect("a file");
        std::fs::write(path, component).expect("a file");
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Threads of the last start may still write to it.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

struct Open {
    policies: Policies,
    driver: Driver,
    seat: crate::driver::Seat,
}

impl Open {
    fn active(&self) -> Option<host::PolicyId> {
        self.policies.0.host.active(KIND).map(|policy| policy.id().clone())
    }

    /// Pushes a component with so long a lease.
    fn push(&self, component: &[u8], ttl_ms: &str) -> host::PolicyId {
        let config = vec![("ttl-ms".to_owned(), ttl_ms.to_owned())];
        let policy = self.policies.push(component, None, config).map_err(|(status, _)| status);
        policy.expect("it is admitted").id().clone()
    }

    fn activate(&self, id: &host::PolicyId) {
        let done = self.policies.activate(&digits(id), true).map_err(|(status, _)| status);
        assert_eq!(done.expect("it is ready").active, id.to_string());
    }

    fn remove(&self, id: &host::PolicyId) -> Result<String, (StatusCode, String)> {
        let removed = self.policies.remove(&digits(id)).map(|done| done.removed);
        removed.map_err(|(status, Json(why))| (status, serde_json::to_string(&why).expect("a text")))
    }

    fn alarms(&self) -> Vec<Alarm> {
        self.driver.alarms().all()
    }

    /// Has it decide once, wholly: the second question is taken when all of the first is done.
    fn decide(&self) {
        for number in 0..2 {
            let (tick, question) = workload::question(KIND, 10, number);
            self.policies.ask(control_core::Ask { id: number, tick, question });
        }
        let answers = [(); 2].map(|()| self.seat.next_decided(Duration::from_secs(60)));
        assert_eq!(answers, [Some(0), Some(1)]);
    }
}

/// The shipped component with a custom section more: the same policy with another digest.
fn another() -> (host::PolicyId, Vec<u8>) {
    let mut component = shipped::component(NAME).expect("it is shipped").to_vec();
    component.extend(b"\0\x08\x07another");
    let config = Digest::of_config(&[]);
    let engine = Engine::new(Limits::default()).expect("an engine");
    let candidate = Candidate { component: &component, ..Candidate::default() };
    let id = Gate::default().admit(&engine, &candidate).expect("it is a policy").id().clone();
    assert_eq!((id.name.as_str(), id.config), (NAME, config));
    (id, component)
}

/// What tells it from all others.
fn digits(id: &host::PolicyId) -> String {
    format!("{}-{}", id.digest, id.config)
}

fn own() -> &'static [u8] {
    shipped::component(NAME).expect("it is shipped")
}

#[test]
fn a_shipped_policy_that_was_chosen_outlives_an_upgrade_that_ships_another() {
    let ground = Ground::new("upgrade");
    let first = ground.open(Trust::default());
    first.policies.activate(NAME, true).expect("it becomes active");
    let id = first.active().expect("it is active");
    let path = first.policies.0.folder.join(format!("{}-{}.wasm", id.digest, id.config.short()));
    let kept = std::fs::read(&path).expect("it is kept when it becomes active");
    assert_eq!(Digest::of(&kept), id.digest);
    let beside = std::fs::read_to_string(path.with_extension("json")).expect("with its companion");
    drop(first);
    // As if another version had done all of this, with a component that this one does not ship.
    let (old, component) = another();
    ground.lay(&old, &component, &beside);
    ground.choose(&old);
    // Whose policies may run besides says nothing of the shipped ones.
    let second = ground.open(ours().1);
    assert_eq!(second.active().as_ref(), Some(&old));
    assert_eq!(second.alarms(), []);
    // By its name this version's own is found.
    let found = second.policies.find(NAME).map(|policy| policy.id().clone());
    assert_eq!(found.map_err(|(status, _)| status), Ok(id));
}

#[test]
fn a_choice_that_cannot_be_restored_stays_until_somebody_makes_another() {
    let ground = Ground::new("missing");
    drop(ground.open(Trust::default()));
    let (old, component) = another();
    ground.choose(&old);
    let chosen = ground.chosen();
    let without = ground.open(Trust::default());
    assert_eq!(without.active(), None);
    let said = without.alarms().first().map(|alarm| alarm.what.clone()).unwrap_or_default();
    for word in [NAME, "native decides meanwhile", "activate", "tidegate policy rollback leasing"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    without.decide();
    assert_eq!(ground.chosen(), chosen, "a decision does not undo what somebody chose");
    drop(without);
    ground.lay(&old, &component, r#"{"config":[],"shipped":true}"#);
    let with = ground.open(Trust::default());
    assert_eq!(with.active(), Some(old.clone()), "it is there again");
    drop(with);
    // Not what the store names, whatever its companion says.
    ground.lay(&old, b"another one", r#"{"config":[],"shipped":true}"#);
    let without = ground.open(Trust::default());
    assert_eq!(without.active(), None);
    let done = without.policies.roll_back(KIND).map_err(|(status, _)| status).expect("it stays with this");
    assert_eq!((done.active.as_str(), done.before), ("native", old.to_string()));
    assert_eq!(ground.chosen(), None);
    assert!(without.policies.roll_back(KIND).is_err(), "there is nothing before the native default");
}

/// A key, and the trust in it alone.
fn ours() -> (SigningKey, Trust) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let trust = Trust::only(&[key.verifying_key().to_bytes()]).expect("a key");
    (key, trust)
}

#[test]
fn where_keys_are_configured_signatures_are_asked_for_kept_and_checked_again() {
    let ground = Ground::new("signed");
    let (key, trust) = ours();
    let (id, component) = another();
    let signature = key.sign(&component).to_bytes();
    let first = ground.open(trust.clone());
    let push = |signature| first.policies.push(&component, signature, Config::new()).map(drop);
    for (signature, what) in [(None, "--signature"), (Some([0; 64]), "controlplane.toml")] {
        let (status, Json(refused)) = push(signature).expect_err("it is not signed by us");
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let said = serde_json::to_string(&refused).expect("a text");
        assert!(said.contains(what), "{said}");
    }
    push(Some(signature)).map_err(|(status, _)| status).expect("it is signed by us");
    first.policies.activate(&id.digest.to_string(), true).map_err(|(status, _)| status).expect("it runs");
    drop(first);
    let second = ground.open(trust.clone());
    assert_eq!(second.active(), Some(id.clone()), "its signature is kept");
    drop(second);
    ground.lay(&id, &component, r#"{"config":[]}"#);
    assert_eq!(ground.open(trust).active(), None, "without its signature it is left out");
    assert_eq!(ground.open(Trust::default()).active(), Some(id), "where no key is configured it is not");
}

#[test]
fn what_faults_roll_back_is_an_alarm_that_says_why() {
    let ground = Ground::new("faults");
    let open = ground.open(Trust::default());
    let component = shipped::component(shipped::MISBEHAVING).expect("built with this test");
    let config = [("after", "24"), ("fault", "panic")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    open.policies.push(component, None, config.into()).map_err(|(status, _)| status).expect("it is admitted");
    open.policies.activate(shipped::MISBEHAVING, true).expect("it becomes active");
    while open.active().is_some() {
        open.decide();
    }
    open.decide();
    let alarms = open.alarms();
    let said = alarms.first().map(|alarm| alarm.what.as_str()).unwrap_or_default();
    assert!(said.contains("rolled back to native: 5 faults") && said.contains(KIND.name()), "{alarms:?}");
    assert_eq!(ground.chosen(), None, "a rollback stays");
}

#[test]
fn removing_a_version_from_before_leaves_a_choice_that_waits_as_it_is() {
    let ground = Ground::new("removed");
    let first = ground.open(Trust::default());
    let (old, new) = (first.push(own(), "6000"), first.push(own(), "7000"));
    let chosen = first.push(&another().1, "8000");
    [&old, &new, &chosen].into_iter().for_each(|id| first.activate(id));
    let said = ground.chosen();
    drop(first);
    std::fs::remove_file(ground.path(&chosen)).expect("it was kept");
    let without = ground.open(Trust::default());
    assert_eq!(without.active(), Some(new.clone()), "what was before it decides meanwhile");
    let (status, why) = without.remove(&new).expect_err("it decides");
    assert!(status == StatusCode::CONFLICT && why.contains("tidegate policy rollback leasing"), "{why}");
    assert_eq!(without.remove(&old), Ok(old.to_string()));
    assert!(!ground.path(&old).exists());
    assert_eq!(ground.chosen(), said, "nobody made another choice");
}

#[test]
fn a_removal_that_fails_in_part_does_the_rest_and_says_what_is_left() {
    let ground = Ground::new("partly");
    let open = ground.open(Trust::default());
    let compiled = || -> std::collections::BTreeSet<PathBuf> {
        let entries = std::fs::read_dir(ground.root.join("compiled")).expect("it is kept");
        entries.map(|entry| entry.expect("it is there").path()).collect()
    };
    let before = compiled();
    let old = open.push(&another().1, "6000");
    let code = compiled().difference(&before).next().expect("it is compiled").clone();
    let new = open.push(own(), "7000");
    [&old, &new].into_iter().for_each(|id| open.activate(id));
    // Nothing removes a folder as if it were a file.
    std::fs::remove_file(&code).and_then(|()| std::fs::create_dir(&code)).expect("it is ours");
    let (status, why) = open.remove(&old).expect_err("its code stays");
    assert!(status == StatusCode::INTERNAL_SERVER_ERROR && why.contains("remove that file by hand"), "{why}");
    assert!(why.contains(&*code.to_string_lossy()) && !ground.path(&old).exists(), "{why}");
    drop(open);
    let again = ground.open(Trust::default());
    assert_eq!(again.active(), Some(new));
    assert_eq!(again.policies.0.host.previous(KIND).len(), 0, "the store says it too");
}

#[test]
fn when_a_namesake_is_removed_the_shipped_policy_is_found_by_its_name() {
    let ground = Ground::new("namesake");
    let first = ground.open(Trust::default());
    let namesake = first.push(&another().1, "6000");
    drop(first);
    let second = ground.open(Trust::default());
    let found = || second.policies.0.host.find(NAME).map(|policy| policy.id().digest);
    assert_eq!(found(), Some(namesake.digest));
    assert_eq!(second.remove(&namesake), Ok(namesake.to_string()));
    assert_eq!(found(), Some(Digest::of(own())));
}

#[test]
fn after_a_restart_a_name_is_what_was_pushed_last_and_what_was_chosen_has_room() {
    let ground = Ground::new("order");
    let first = ground.open(Trust::default());
    let all: Vec<_> = (0..6).map(|number| first.push(own(), &(6_000 + number).to_string())).collect();
    first.activate(&all[4]);
    drop(first);
    // The one that is chosen last of all, behind more than there is room for.
    for (id, after_s) in all.iter().zip([3, 1, 5, 2, 1_000, 4]) {
        ground.date(id, after_s);
    }
    for number in 0..host::LIBRARY_MAX {
        let config = vec![("ttl-ms".to_owned(), (7_000 + number).to_string())];
        let id = host::PolicyId { config: Digest::of_config(&config), ..all[0].clone() };
        let beside = serde_json::to_string(&json!({ "config": config })).expect("texts");
        ground.lay(&id, own(), &beside);
        ground.date(&id, 100);
    }
    let second = ground.open(Trust::default());
    assert_eq!(second.active(), Some(all[4].clone()));
    let found = second.policies.0.host.find(NAME).map(|policy| policy.id().clone());
    assert_eq!(found, Some(all[4].clone()), "it is the newest");
    let library = second.policies.0.host.status().library;
    let configs =
        library.iter().filter(|policy| policy.name == NAME).map(|policy| policy.config_digest.clone());
    let of_all = [1, 3, 0, 5, 2].map(|row: usize| all[row].config.to_string());
    let configs: Vec<_> = configs.filter(|digest| of_all.contains(digest)).collect();
    assert_eq!(configs, of_all, "in the order in which they were pushed");
}

#[test]
fn who_pushes_while_somebody_removes_has_it_ready_and_kept_or_neither() {
    let ground = Ground::new("races");
    let open = ground.open(Trust::default());
    for _ in 0..12 {
        let id = open.push(own(), "6000");
        std::thread::scope(|scope| {
            scope.spawn(|| open.push(own(), "6000"));
            // It is there: nobody else removes it.
            scope.spawn(|| open.remove(&id).expect("nobody uses it"));
        });
        let is_ready = open.policies.0.host.find_by(|known| *known == id).is_some();
        assert_eq!(is_ready, ground.path(&id).exists());
        if is_ready {
            open.remove(&id).expect("nobody uses it");
        }
    }
}
