//! Explicit congestion notification through tunnels (RFC 6040).

/// Not ECN-capable transport.
pub(crate) const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub(crate) const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub(crate) const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub(crate) const CE: u8 = 0b11;

/// The field of a packet that leaves a tunnel, or `None` when it must be dropped: RFC 6040, clause 4.2,
/// figure 4.
///
/// ```text
///  inner \ outer   Not-ECT   ECT(0)    ECT(1)    CE
///  Not-ECT         Not-ECT   Not-ECT   Not-ECT   drop
///  ECT(0)          ECT(0)    ECT(0)    ECT(1)    CE
///  ECT(1)          ECT(1)    ECT(1)    ECT(1)    CE
///  CE              CE        CE        CE        CE
/// ```
pub(crate) fn decapsulate(inner: u8, outer: u8) -> Option<u8> {
    match (inner, outer) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sixteen_cells_of_rfc_6040_figure_4() {
        let outer = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            assert_eq!(outer.map(|outer| decapsulate(inner, outer)), row, "inner {inner:02b}");
        }
    }
}
