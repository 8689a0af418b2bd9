//! State as a row of numbers: the simplest layout that two versions can agree on.

/// Eight bytes each, little-endian.
pub fn pack(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// What [`pack`] was given.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u64>, String> {
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(format!("{} bytes of state are no whole number of words", bytes.len()));
    }
    Ok(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// Pairs of numbers, for tables.
pub fn unpack_pairs(bytes: &[u8]) -> Result<Vec<(u64, u64)>, String> {
    let words = unpack(bytes)?;
    let (pairs, rest) = words.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(format!("{} words of state are no whole number of pairs", words.len()));
    }
    Ok(pairs.iter().map(|&[first, second]| (first, second)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_what_is_cut_does_not() {
        let bytes = pack([1, u64::MAX, 3, 4]);
        assert_eq!(unpack(&bytes).unwrap(), [1, u64::MAX, 3, 4]);
        assert_eq!(unpack_pairs(&bytes).unwrap(), [(1, u64::MAX), (3, 4)]);
        assert!(unpack(&bytes[1..]).is_err());
        assert!(unpack_pairs(&bytes[8..]).is_err());
    }
}
