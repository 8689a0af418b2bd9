//! Names of things.
//!
//! Ids are numbers that the control plane hands out once and never again; they are written `volume/7`. Names
//! are chosen by people, unique among the things of one sort, and can be part of a path or a host name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not an id; write {sort}/NUMBER or the number alone")]
pub struct IdError {
    /// What was read.
    pub text: String,
    /// What it should name.
    pub sort: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $sort:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($sort, "/{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<$name, IdError> {
                let number = text.strip_prefix(concat!($sort, "/")).unwrap_or(text);
                number.parse().map($name).map_err(|_| IdError { text: text.to_owned(), sort: $sort })
            }
        }
    };
}

id!(
    /// A data-plane daemon.
    NodeId,
    "node"
);
id!(
    /// A volume.
    VolumeId,
    "volume"
);
id!(
    /// Whose volumes and networks are kept apart.
    TenantId,
    "tenant"
);
id!(
    /// Something that happened, or that somebody asked for.
    EventId,
    "event"
);
id!(
    /// Work in steps.
    OperationId,
    "operation"
);
id!(
    /// A reservation.
    LeaseId,
    "lease"
);
id!(
    /// How often an object was changed, for compare-and-set. 0 = it was never there.
    Revision,
    "revision"
);
id!(
    /// Of a node's snapshot; it only grows.
    Version,
    "version"
);
id!(
    /// Who may write a volume: a higher one fences a lower one at the media (decision D10).
    Epoch,
    "epoch"
);

impl Epoch {
    /// The one that fences this one.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

/// SHA-256 of a policy's component together with its configuration; all zero = the native default.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyDigest(pub [u8; 32]);

impl PolicyDigest {
    /// Stands for the native default.
    pub const NATIVE: PolicyDigest = PolicyDigest([0; 32]);
}

impl fmt::Display for PolicyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == PolicyDigest::NATIVE {
            return f.write_str("native");
        }
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PolicyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PolicyDigest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<PolicyDigest, IdError> {
        if text == "native" {
            return Ok(PolicyDigest::NATIVE);
        }
        let wrong = || IdError { text: text.to_owned(), sort: "policy" };
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
        }
        Ok(PolicyDigest(bytes))
    }
}

impl Serialize for PolicyDigest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PolicyDigest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<PolicyDigest, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a name; use 1 to {max} of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit",
    max = Name::LEN_MAX
)]
pub struct NameError(pub String);

/// What people call a thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[a-z0-9][a-z0-9._-]{0,62}$")))]
pub struct Name(String);

impl Name {
    /// Longest name, bytes.
    pub const LEN_MAX: usize = 63;

    /// Checks a name.
    pub fn new(text: impl Into<String>) -> Result<Name, NameError> {
        let text = text.into();
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let inside = text.bytes().all(|byte| good(byte) || b"-_.".contains(&byte));
        let begins = text.bytes().next().is_some_and(good);
        if inside && begins && text.len() <= Name::LEN_MAX { Ok(Name(text)) } else { Err(NameError(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        Name::new(text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        assert_eq!(VolumeId(7).to_string(), "volume/7");
        assert_eq!("volume/7".parse(), Ok(VolumeId(7)));
        assert_eq!("7".parse(), Ok(VolumeId(7)));
        let error = "node/7".parse::<VolumeId>().unwrap_err();
        assert_eq!(error.to_string(), "\"node/7\" is not an id; write volume/NUMBER or the number alone");
    }

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = PolicyDigest(std::array::from_fn(|at| at as u8));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("native".parse(), Ok(PolicyDigest::NATIVE));
        for wrong in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert!(wrong.parse::<PolicyDigest>().is_err(), "{wrong}");
        }
        let json = serde_json::to_string(&digest).expect("plain");
        assert_eq!(serde_json::from_str::<PolicyDigest>(&json).expect("as written"), digest);
    }

    #[test]
    fn names_fit_paths_and_host_names() {
        for good in ["a", "0", "root-disk_1.bak", &"x".repeat(63)] {
            assert_eq!(Name::new(good).expect("good").as_str(), good);
        }
        for bad in ["", "-a", ".", "..", "a/b", "A", "ä", "a b", &"x".repeat(64)] {
            assert!(Name::new(bad).is_err(), "{bad}");
            assert!(serde_json::from_value::<Name>(bad.into()).is_err(), "{bad}");
        }
    }
}
