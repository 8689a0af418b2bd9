//! Policies that are ready: pushed, found by name or digest, and removed by hand.
//!
//! Invariants: who pushes finds at most [`LIBRARY_MAX`] there, and then removes one; nothing that decides, is asked beside
//! who decides, or is pushed by the program itself goes by itself.

use std::sync::Arc;

use thiserror::Error;

use super::Policies;
use crate::digest::{Digest, PolicyId};
use crate::policy::{AdmitError, Candidate, Policy};
use crate::seat::lock;

/// Policies that are kept ready.
pub const LIBRARY_MAX: usize = 64;

/// Why a policy stays.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// It decides.
    #[error(
        "{policy} decides about {kind}; activate another one or `tidegate policy rollback {kind}`, and remove it then"
    )]
    Active {
        /// Which.
        policy: String,
        /// About what.
        kind: &'static str,
    },
    /// It is asked beside the one that decides.
    #[error("{policy} is a shadow; `tidegate policy shadow --stop {kind}`, and remove it then")]
    Shadow {
        /// Which.
        policy: String,
        /// Whose.
        kind: &'static str,
    },
    /// Its compiled code.
    #[error("{policy} is removed, and its compiled code stays behind: {why}; remove that file by hand")]
    Compiled {
        /// Whose.
        policy: String,
        /// Which file, and the kernel's answer.
        why: String,
    },
}

impl Policies {
    /// Admits a policy and keeps it ready. Nothing changes for decisions.
    pub fn push(&self, candidate: &Candidate<'_>) -> Result<Arc<Policy>, AdmitError> {
        let policy = self.shared.gate.admit(&self.shared.engine, candidate)?;
        self.take_in(policy, LIBRARY_MAX)
    }

    /// The same for one that was chosen before: there is room for it, and there are no more than can be gone back to.
    pub fn push_chosen(&self, candidate: &Candidate<'_>) -> Result<Arc<Policy>, AdmitError> {
        let policy = self.shared.gate.admit(&self.shared.engine, candidate)?;
        self.take_in(policy, usize::MAX)
    }

    /// The same for a component that is part of the program that asks: who trusts that one trusts this, and nobody signs
    /// it for each of those who run it. There are as many as the program has.
    pub fn push_own(&self, component: &[u8]) -> Result<Arc<Policy>, AdmitError> {
        let candidate = Candidate { component, ..Candidate::default() };
        let policy = self.shared.gate.admit_own(&self.shared.engine, &candidate)?;
        self.take_in(policy, usize::MAX)
    }

    fn take_in(&self, policy: Arc<Policy>, max: usize) -> Result<Arc<Policy>, AdmitError> {
        let mut control = lock(&self.shared.control);
        if let Some(at) = control.library.iter().position(|known| known.id() == policy.id()) {
            let known = control.library.remove(at);
            control.library.push(known.clone());
            return Ok(known);
        }
        if control.library.len() >= max {
            return Err(AdmitError::Full { max });
        }
        control.library.push(policy.clone());
        self.shared.tell(&mut control, policy.kind(), format!("{} is pushed", policy.id()));
        Ok(policy)
    }

    /// The policy of that name or digest, or of that digest and configuration with `-` between them; of several the one
    /// that was pushed last. First digits will do: six of the digest.
    pub fn find(&self, text: &str) -> Option<Arc<Policy>> {
        let (digest, config) = text.split_once('-').unwrap_or((text, ""));
        self.find_by(|id| {
            let is_its = |digits: &str, of: &Digest| of.to_string().starts_with(digits);
            id.name == text || (digest.len() >= 6 && is_its(digest, &id.digest) && is_its(config, &id.config))
        })
    }

    /// The policy whose id is asked for; of several the one that was pushed last.
    pub fn find_by(&self, fits: impl Fn(&PolicyId) -> bool) -> Option<Arc<Policy>> {
        let control = lock(&self.shared.control);
        control.library.iter().rev().find(|policy| fits(policy.id())).cloned()
    }

    /// Removes a policy that is not in use; a rollback does not go back to it any more.
    pub fn remove(&self, policy: &Arc<Policy>) -> Result<(), RemoveError> {
        let (id, kind) = (policy.id(), policy.kind());
        let mut control = lock(&self.shared.control);
        let is_it = |used: &Option<Arc<Policy>>| used.as_ref().is_some_and(|used| used.id() == id);
        let course = &mut control.courses[kind as usize];
        if is_it(&course.active) {
            return Err(RemoveError::Active { policy: id.to_string(), kind: kind.name() });
        }
        if is_it(&course.shadow) {
            return Err(RemoveError::Shadow { policy: id.to_string(), kind: kind.name() });
        }
        course.previous.retain(|version| version.policy.id() != id);
        control.library.retain(|known| known.id() != id);
        self.shared.tell(&mut control, kind, format!("{id} is removed"));
        // The same component with another configuration runs the same code.
        let shares = control.library.iter().any(|known| known.id().digest == id.digest);
        let cache = self.shared.gate.cache.as_ref().filter(|_| !shares);
        let removed = cache.map_or(Ok(()), |cache| cache.remove(&self.shared.engine, id.digest));
        removed.map_err(|why| RemoveError::Compiled { policy: id.to_string(), why })
    }
}
