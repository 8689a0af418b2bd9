//! What a policy is called by: the SHA-256 of its component, and of its configuration.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Of a configuration; each text is counted, so that no two configurations read alike.
    pub fn of_config(config: &[(String, String)]) -> Digest {
        let mut hash = Sha256::new();
        for text in config.iter().flat_map(|(key, value)| [key, value]) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        Digest(hash.finalize().into())
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Which version of which policy: its code and its configuration are one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyId {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Of its component.
    pub digest: Digest,
    /// Of its configuration.
    pub config: Digest,
}

impl std::fmt::Display for PolicyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({}", self.name, self.version, self.digest.short())?;
        if self.config != Digest::of_config(&[]) {
            write!(f, ", configuration {}", self.config.short())?;
        }
        f.write_str(")")
    }
}
