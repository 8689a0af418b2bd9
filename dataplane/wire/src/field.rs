//! Fixed-offset reads and writes. Offsets are constants below `N`, so after inlining neither a check nor a
//! panic remains.

#[inline(always)]
pub(crate) fn array<const N: usize, const L: usize>(header: &[u8; N], at: usize) -> [u8; L] {
    const { assert!(L <= N) };
    std::array::from_fn(|i| header[at + i])
}

#[inline(always)]
pub(crate) fn be16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn be32<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_be_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn be64<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn be128<const N: usize>(header: &[u8; N], at: usize) -> u128 {
    u128::from_be_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn put<const N: usize, const L: usize>(header: &mut [u8; N], at: usize, value: [u8; L]) {
    header[at..at + L].copy_from_slice(&value);
}

#[inline(always)]
pub(crate) fn put16<const N: usize>(header: &mut [u8; N], at: usize, value: u16) {
    put(header, at, value.to_be_bytes());
}

#[inline(always)]
pub(crate) fn put32<const N: usize>(header: &mut [u8; N], at: usize, value: u32) {
    put(header, at, value.to_be_bytes());
}

#[inline(always)]
pub(crate) fn put64<const N: usize>(header: &mut [u8; N], at: usize, value: u64) {
    put(header, at, value.to_be_bytes());
}

#[inline(always)]
pub(crate) fn le16<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn le32<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(array(header, at))
}

#[inline(always)]
pub(crate) fn le64<const N: usize>(header: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(array(header, at))
}
