//! Ethernet II frames and their VLAN tags (IEEE 802.3, 802.1Q, 802.1ad).
//!
//! At most two tags are followed: one 802.1Q tag, or an 802.1ad service tag with a customer tag inside.

use crate::field::{array, be16};
use crate::{EmitError, EtherType, Mac, ParseError, VlanId};

/// Addresses and type.
pub const HEADER_BYTES: usize = 14;
/// One VLAN tag.
pub const TAG_BYTES: usize = 4;
/// Tags that are followed; more are refused.
pub const TAGS_MAX: usize = 2;
/// Shortest frame on a wire, without its check sequence; shorter ones are padded to it.
pub const FRAME_BYTES_MIN: usize = 60;

/// The tag control information of one VLAN tag (IEEE 802.1Q clause 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// [`EtherType::VLAN`] or [`EtherType::SERVICE_VLAN`].
    pub kind: EtherType,
    /// Priority code point, 0 to 7.
    pub priority: u8,
    /// Drop eligible indicator.
    pub drop_eligible: bool,
    /// `None` for a tag that carries only a priority.
    pub vlan: Option<VlanId>,
}

impl Tag {
    fn parse(kind: EtherType, control: u16) -> Result<Self, ParseError> {
        // IEEE 802.1Q table 9-2: identifier 0 is the null VLAN, a tag that carries only a priority; 0xfff
        // is reserved and never transmitted.
        let vlan = match control & 0x0fff {
            0 => None,
            id => Some(VlanId::new(id).ok_or(ParseError::Malformed)?),
        };
        Ok(Self { kind, priority: (control >> 13) as u8, drop_eligible: control & 0x1000 != 0, vlan })
    }

    const fn control(&self) -> u16 {
        let vlan = match self.vlan {
            Some(id) => id.value(),
            None => 0,
        };
        ((self.priority & 7) as u16) << 13 | (self.drop_eligible as u16) << 12 | vlan
    }
}

/// A checked frame.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    addresses: &'a [u8; HEADER_BYTES],
    tags: [Option<Tag>; TAGS_MAX],
    ethertype: EtherType,
    header_bytes: usize,
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the header and walks its tags.
    pub fn parse(frame: &'a [u8]) -> Result<Self, ParseError> {
        let (addresses, mut payload) = frame.split_first_chunk().ok_or(ParseError::Truncated)?;
        let mut view = Self {
            addresses,
            tags: [None; TAGS_MAX],
            ethertype: EtherType(be16(addresses, 12)),
            header_bytes: HEADER_BYTES,
            payload,
        };
        for slot in 0..TAGS_MAX {
            if !view.ethertype.is_vlan_tag() {
                break;
            }
            let (tag, rest) = payload.split_first_chunk::<TAG_BYTES>().ok_or(ParseError::Truncated)?;
            view.tags[slot] = Some(Tag::parse(view.ethertype, be16(tag, 0))?);
            view.ethertype = EtherType(be16(tag, 2));
            view.header_bytes += TAG_BYTES;
            payload = rest;
        }
        if view.ethertype.is_vlan_tag() {
            return Err(ParseError::TooManyHeaders);
        }
        view.payload = payload;
        Ok(view)
    }

    /// Destination address.
    pub fn dst(&self) -> Mac {
        Mac(array(self.addresses, 0))
    }

    /// Source address.
    pub fn src(&self) -> Mac {
        Mac(array(self.addresses, 6))
    }

    /// The type after all tags.
    pub fn ethertype(&self) -> EtherType {
        self.ethertype
    }

    /// The outermost tag.
    pub fn tag(&self) -> Option<Tag> {
        self.tags[0]
    }

    /// The tag inside the outermost one.
    pub fn inner_tag(&self) -> Option<Tag> {
        self.tags[1]
    }

    /// Length of addresses, tags and type: offset of the payload.
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// Everything after the header, padding included.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// What [`Header::emit`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub dst: Mac,
    /// Source address.
    pub src: Mac,
    /// One tag, if any.
    pub tag: Option<Tag>,
    /// Type of the payload.
    pub ethertype: EtherType,
}

impl Header {
    /// Length when written.
    pub const fn header_bytes(&self) -> usize {
        if self.tag.is_some() { HEADER_BYTES + TAG_BYTES } else { HEADER_BYTES }
    }

    /// Writes the header to the front of `out`; returns its length.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, EmitError> {
        let needed_bytes = self.header_bytes();
        let out = out.get_mut(..needed_bytes).ok_or(EmitError::NoRoom { needed_bytes })?;
        out[..6].copy_from_slice(&self.dst.0);
        out[6..12].copy_from_slice(&self.src.0);
        if let Some(tag) = self.tag {
            out[12..14].copy_from_slice(&tag.kind.0.to_be_bytes());
            out[14..16].copy_from_slice(&tag.control().to_be_bytes());
        }
        out[needed_bytes - 2..].copy_from_slice(&self.ethertype.0.to_be_bytes());
        Ok(needed_bytes)
    }
}
