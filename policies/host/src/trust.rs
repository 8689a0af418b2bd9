//! Whose policies may run. A signature is an Ed25519 signature of the component's bytes, kept beside it.

use data_encoding::{BASE64_NOPAD, HEXLOWER_PERMISSIVE};
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
        "only signed policies run here, and this one has no signature; sign its component with a trusted key and push \
         it with `tidegate policy push FILE --signature FILE`"
    )]
    Unsigned,
    /// Not a signature, or of something else, or of somebody else.
    #[error(
        "the signature is not one of this component by any of the {0} trusted keys; sign the very file that is pushed \
         with one of them, or have the key added to [policies] of controlplane.toml"
    )]
    Forged(usize),
}

/// Reads so many bytes that are written in hexadecimal digits or in base64 (RFC 4648, clause 4, padded or not).
pub fn bytes_of<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let text = text.trim();
    let decoded = match text.len() == 2 * BYTES {
        true => HEXLOWER_PERMISSIVE.decode(text.as_bytes()),
        false => BASE64_NOPAD.decode(text.trim_end_matches('=').as_bytes()),
    };
    decoded.ok()?.try_into().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_hexadecimal_and_in_base64() {
        let bytes: [u8; 32] = std::array::from_fn(|at| (at * 37) as u8);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(bytes_of(&hex), Some(bytes));
        assert_eq!(bytes_of(&format!(" {}\n", hex.to_uppercase())), Some(bytes));
        for base64 in
            ["ACVKb5S53gMoTXKXvOEGK1B1mr/kCS5TeJ3C5wwxVns=", "ACVKb5S53gMoTXKXvOEGK1B1mr/kCS5TeJ3C5wwxVns"]
        {
            assert_eq!(bytes_of(base64), Some(bytes), "{base64}");
        }
        let other = hex.replace('b', "x");
        for wrong in
            ["", "00", "ACVK", &hex[2..], &other, "é", "ACVKb5S53gMoTXKXvOEGK1B1mr/kCS5TeJ3C5wwxVn-="]
        {
            assert_eq!(bytes_of::<32>(wrong), None, "{wrong}");
        }
    }
}
