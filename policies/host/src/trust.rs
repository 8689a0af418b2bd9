//! Whose policies may run. A signature is an Ed25519 signature of the component's bytes, kept beside it.

use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;

/// Keys of those whose policies may run. With none of them, anybody's may.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<VerifyingKey>,
}

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrustError {
    /// Not a public key.
    #[error("a key is 32 bytes that are a point of the curve; these are not")]
    Key,
    /// None, and one is wanted.
    #[error(
        "only signed policies run here, and this one has no signature; sign its component with a trusted key"
    )]
    Unsigned,
    /// Not a signature, or of something else, or of somebody else.
    #[error("the signature is not one of this component by any of the {0} trusted keys")]
    Forged(usize),
}

impl Trust {
    /// Trusts those who hold these keys, and no others.
    pub fn only(keys: &[[u8; 32]]) -> Result<Trust, TrustError> {
        let keys = keys.iter().map(VerifyingKey::from_bytes).collect::<Result<_, _>>();
        Ok(Trust { keys: keys.map_err(|_| TrustError::Key)? })
    }

    /// Checks a component.
    pub fn check(&self, component: &[u8], signature: Option<&[u8]>) -> Result<(), TrustError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let signature = signature.ok_or(TrustError::Unsigned)?;
        let forged = TrustError::Forged(self.keys.len());
        let signature = Signature::from_slice(signature).map_err(|_| forged.clone())?;
        let known = self.keys.iter().any(|key| key.verify_strict(component, &signature).is_ok());
        if known { Ok(()) } else { Err(forged) }
    }
}
