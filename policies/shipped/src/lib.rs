//! The shipped policies as components, built from source by this crate's build script.
//!
//! Whoever embeds them admits them like any other: through the host, by digest.

#![forbid(unsafe_code)]

const COMPONENTS: &[(&str, &[u8])] = &include!(concat!(env!("OUT_DIR"), "/components.rs"));

/// A policy for tests that does what a policy must not; its configuration says what. Not for production.
pub const MISBEHAVING: &str = "misbehaving";

/// Name and component of each shipped policy.
pub fn all() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    COMPONENTS.iter().copied().filter(|(name, _)| *name != MISBEHAVING)
}

/// The component of a policy of that name, also of [`MISBEHAVING`].
pub fn component(name: &str) -> Option<&'static [u8]> {
    COMPONENTS.iter().find(|(known, _)| *known == name).map(|(_, component)| *component)
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_of_each_kind_are_shipped_and_small() {
        for kind in ["scheduling-", "leasing-", "migration-"] {
            let sizes: Vec<usize> = super::all()
                .filter(|(name, _)| name.starts_with(kind))
                .map(|(_, bytes)| bytes.len())
                .collect();
            assert_eq!(sizes.len(), 2, "{kind}");
            assert!(sizes.iter().all(|&bytes| bytes < 256 << 10), "{kind}: {sizes:?}");
        }
        assert!(super::component(super::MISBEHAVING).is_some());
    }
}
