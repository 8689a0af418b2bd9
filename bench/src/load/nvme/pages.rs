//! What Identify and the ANA log answer with, as far as a host that reads and writes looks at it.
//!
//! Figures are those of the NVM Express Base Specification 2.0 and of the NVM Command Set Specification 1.0.

use wire::nvme::data::{ANA_GROUP_BYTES, ANA_HEAD_BYTES, AnaState, Events, IDENTIFY_BYTES};

/// Groups whose states are looked at, at most.
const ANA_GROUPS_MAX: u32 = 127;

/// "Identify Controller Data Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControllerPage {
    /// MDTS; `None` for no limit.
    pub transfer_bytes_max: Option<u64>,
    /// OAES: it tells of changes of ANA states.
    pub tells_of_ana: bool,
    /// CMIC bit 3: it has ANA states, so many groups of them (NANAGRPID).
    pub ana_groups: Option<u32>,
    /// IOCCSZ and ICDOFF: data that goes along with a command.
    pub capsule_bytes: usize,
}

/// "Identify Namespace Data Structure".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamespacePage {
    /// NSZE.
    pub blocks: u64,
    /// LBADS of the format in use.
    pub block_bytes_log2: u8,
    /// NGUID.
    pub nguid: [u8; 16],
    /// ANAGRPID.
    pub ana_group: u32,
}

/// How good a way is by its state, the best first; `None` for one without I/O.
pub(super) fn rank(state: AnaState) -> Option<u8> {
    match state {
        AnaState::Optimized => Some(0),
        AnaState::NonOptimized => Some(1),
        AnaState::Inaccessible | AnaState::PersistentLoss | AnaState::Change => None,
    }
}

impl ControllerPage {
    /// `None` if the page is too short. MDTS counts in memory pages of `page_bytes`.
    pub fn parse(page: &[u8], page_bytes: u64) -> Option<ControllerPage> {
        let page: &[u8; IDENTIFY_BYTES] = page.first_chunk()?;
        let capsule_bytes = (le32(page, 1792)? as usize * 16).saturating_sub(64);
        let has_offset = le16(page, 1800)? != 0;
        Some(ControllerPage {
            transfer_bytes_max: (page[77] > 0).then(|| page_bytes << page[77].min(32)),
            tells_of_ana: Events(le32(page, 92)?).has(Events::ANA),
            ana_groups: if page[76] >> 3 & 1 != 0 { Some(le32(page, 348)?) } else { None },
            capsule_bytes: if has_offset { 0 } else { capsule_bytes },
        })
    }
}

impl NamespacePage {
    /// `None` if the page is too short, or there is no such namespace.
    pub fn parse(page: &[u8]) -> Option<NamespacePage> {
        let page: &[u8; IDENTIFY_BYTES] = page.first_chunk()?;
        let blocks = u64::from_le_bytes(*page.first_chunk()?);
        // FLBAS: bits 3:0 are the lower bits of the format, bits 6:5 the upper ones.
        let format = usize::from(page[26] & 0xf | page[26] >> 1 & 0x30);
        let block_bytes_log2 = *page.get(128 + 4 * format + 2)?;
        (blocks > 0 && (9..=16).contains(&block_bytes_log2)).then_some(NamespacePage {
            blocks,
            block_bytes_log2,
            nguid: *page[104..].first_chunk()?,
            ana_group: le32(page, 92)?,
        })
    }
}

/// Length of the ANA log without the namespaces of its groups (RGO).
pub(super) fn ana_log_bytes(groups: u32) -> u32 {
    (ANA_HEAD_BYTES + ANA_GROUP_BYTES * groups.clamp(1, ANA_GROUPS_MAX) as usize) as u32
}

/// "Asymmetric Namespace Access Log Page": the state of `group`, if the log tells it.
pub(super) fn ana_state(log: &[u8], group: u32) -> Option<AnaState> {
    let count = usize::from(le16(log, 8)?);
    let groups = log.get(ANA_HEAD_BYTES..)?.chunks_exact(ANA_GROUP_BYTES).take(count);
    let found = groups.into_iter().find(|one| le32(one, 0) == Some(group))?;
    Some(match found[16] & 0xf {
        1 => AnaState::Optimized,
        2 => AnaState::NonOptimized,
        3 => AnaState::Inaccessible,
        4 => AnaState::PersistentLoss,
        _ => AnaState::Change,
    })
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_as_the_figures_draw_them() {
        let mut page = [0; IDENTIFY_BYTES];
        (page[76], page[77], page[93]) = (1 << 3, 5, 1 << 3);
        page[348] = 9;
        page[1792..1794].copy_from_slice(&516_u16.to_le_bytes());
        let controller = ControllerPage {
            transfer_bytes_max: Some(128 << 10),
            tells_of_ana: true,
            ana_groups: Some(9),
            capsule_bytes: 8192,
        };
        assert_eq!(ControllerPage::parse(&page, 4096), Some(controller));
        assert_eq!(ControllerPage::parse(&page[..4000], 4096), None);

        let mut page = [0; IDENTIFY_BYTES];
        assert_eq!(NamespacePage::parse(&page), None, "no such namespace");
        (page[1], page[26], page[92], page[134]) = (1, 1, 7, 12);
        page[104..120].fill(0xab);
        let namespace = NamespacePage { blocks: 256, block_bytes_log2: 12, nguid: [0xab; 16], ana_group: 7 };
        assert_eq!(NamespacePage::parse(&page), Some(namespace));
    }

    #[test]
    fn the_state_of_a_group_is_found_in_the_log() {
        let mut log = vec![0; ana_log_bytes(3) as usize];
        log[8] = 3;
        for (at, (group, state)) in [(1, 1), (4, 3), (9, 0xf)].into_iter().enumerate() {
            log[16 + 32 * at] = group;
            log[16 + 32 * at + 16] = state;
        }
        assert_eq!(ana_state(&log, 1), Some(AnaState::Optimized));
        assert_eq!(ana_state(&log, 4), Some(AnaState::Inaccessible));
        assert_eq!(ana_state(&log, 9), Some(AnaState::Change));
        assert_eq!(ana_state(&log, 2), None);
        log[8] = 1;
        assert_eq!(ana_state(&log, 9), None, "behind the end of the log");
        assert_eq!(ana_state(&log[..4], 1), None);
    }
}
