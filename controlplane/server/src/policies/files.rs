//! Components as files beside the store, under their digests, with their configuration and signature.
//!
//! A shipped policy is part of the program and has no file until it is chosen: from then on the version that was chosen
//! outlives an upgrade, which ships others (decision 075).
//!
//! Invariant: what stands in a file is admitted anew at each start, with its signature where keys are configured. A
//! shipped one has none; it is taken as long as the store says, by its digest, that it was chosen.

use std::io;
use std::path::{Path, PathBuf};

use host::{Candidate, Config, Digest, Policy, PolicyId};
use serde::{Deserialize, Serialize};
use tracing::error;

use super::{Policies, PoliciesError};

/// What stands beside a component.
#[derive(Serialize, Deserialize)]
struct Beside {
    config: Config,
    /// Of the component, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
    /// It was part of the program that wrote it.
    #[serde(default)]
    shipped: bool,
}

impl Policies {
    /// Admits what lies in the folder, and what is shipped if any of `chosen` may be that. Of one name the last one is
    /// found: first come shipped ones of other versions of this program, then those of this one, then what was pushed in
    /// the order in which it was. There is room for what is chosen however much else lies there.
    pub(super) fn read_files(&self, chosen: &[&PolicyId]) -> Result<(), PoliciesError> {
        let failed = |source| PoliciesError::Folder { path: self.0.folder.clone(), source };
        let (mut shipped, mut pushed) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&self.0.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "wasm") {
                continue;
            }
            let written = entry.metadata().and_then(|of_it| of_it.modified()).map_err(failed)?;
            match beside(&path) {
                Ok(beside) if beside.shipped => shipped.push(path),
                Ok(beside) => pushed.push((written, path, beside)),
                Err(why) => self.left_out(&path, Err(why)),
            }
        }
        for path in &shipped {
            self.left_out(path, self.read_shipped(path, chosen));
        }
        if !chosen.is_empty() {
            // It was compiled when it became active.
            self.push_shipped(|_| true);
        }
        pushed.sort_by_key(|(written, ..)| *written);
        for (_, path, beside) in pushed {
            let is_chosen = chosen.iter().any(|id| self.path(id) == path);
            self.left_out(&path, self.read_pushed(&path, beside, is_chosen));
        }
        Ok(())
    }

    fn left_out(&self, path: &Path, outcome: Result<(), String>) {
        if let Err(why) = outcome {
            error!("{} is left out: {why}", path.display());
        }
    }

    fn read_shipped(&self, path: &Path, chosen: &[&PolicyId]) -> Result<(), String> {
        let component = std::fs::read(path).map_err(|error| error.to_string())?;
        let digest = Digest::of(&component);
        // One that nobody goes back to any more is of no use, and by whom it was written is not known.
        if !chosen.iter().any(|id| id.digest == digest) {
            return Ok(());
        }
        self.0.host.push_own(&component).map(drop).map_err(|error| error.to_string())
    }

    fn read_pushed(&self, path: &Path, beside: Beside, is_chosen: bool) -> Result<(), String> {
        let component = std::fs::read(path).map_err(|error| error.to_string())?;
        let signature = beside.signature.map(|text| {
            host::bytes_of::<64>(&text)
                .ok_or("its signature is not 64 bytes in hexadecimal digits; push it again")
        });
        let signature = signature.transpose()?;
        let signature = signature.as_ref().map(<[u8; 64]>::as_slice);
        let candidate = Candidate { component: &component, signature, config: beside.config };
        let host = &self.0.host;
        let admitted = if is_chosen { host.push_chosen(&candidate) } else { host.push(&candidate) };
        admitted.map(drop).map_err(|error| error.to_string())
    }

    /// Has those shipped policies ready whose names are wanted.
    pub(super) fn push_shipped(&self, wanted: impl Fn(&str) -> bool) {
        for (name, component) in shipped::all().filter(|(name, _)| wanted(name)) {
            if let Err(why) = self.0.host.push_own(component) {
                error!("the shipped policy {name} is left out: {why}");
            }
        }
    }

    /// Keeps what was pushed.
    pub(super) fn keep_pushed(&self, policy: &Policy, pushed: &Candidate<'_>) -> Result<(), String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let beside =
            Beside { config: pushed.config.clone(), signature: pushed.signature.map(hex), shipped: false };
        self.write(policy.id(), pushed.component, &beside)
    }

    /// Keeps a shipped policy that is chosen; any other is kept since it was pushed.
    pub(super) fn keep_chosen(&self, policy: &Policy) -> Result<(), String> {
        if self.path(policy.id()).exists() {
            return Ok(());
        }
        let of_it = |component: &[u8]| Digest::of(component) == policy.id().digest;
        let Some((_, component)) = shipped::all().find(|(_, component)| of_it(component)) else {
            return Ok(());
        };
        self.write(policy.id(), component, &Beside { config: Config::new(), signature: None, shipped: true })
    }

    /// Removes what is kept of a policy.
    pub(super) fn remove_files(&self, id: &PolicyId) -> Result<(), String> {
        let path = self.path(id);
        // What is read at the start is the component: it goes first.
        for path in [&path, &path.with_extension("json")] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, id: &PolicyId) -> PathBuf {
        self.0.folder.join(format!("{}-{}.wasm", id.digest, id.config.short()))
    }

    fn write(&self, id: &PolicyId, component: &[u8], beside: &Beside) -> Result<(), String> {
        let path = self.path(id);
        let keep = || -> io::Result<()> {
            // What is read back at the start is the component: its companion comes first.
            std::fs::write(path.with_extension("json"), serde_json::to_vec(beside)?)?;
            let new = path.with_extension("new");
            std::fs::write(&new, component)?;
            std::fs::File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &path)
        };
        keep().map_err(|error| format!("{}: {error}", path.display()))
    }
}

fn beside(path: &Path) -> Result<Beside, String> {
    let beside = std::fs::read(path.with_extension("json")).map_err(|error| error.to_string())?;
    serde_json::from_slice(&beside).map_err(|error| error.to_string())
}
