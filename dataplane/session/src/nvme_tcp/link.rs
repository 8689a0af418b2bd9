//! Units (PDUs) of one connection, out of a stream of bytes: those of a host for us, those of a controller for
//! who plays the host.
//!
//! Invariants: what a caller sees of a header was checked against its digest; data is shown in order, as it
//! comes, and never held here; the digest of the data is known when its last byte was shown.

use block::IO_BYTES_MAX;
use wire::nvme_tcp::{Agreed, Common, DIGEST_BYTES, Direction, Fatal, Kind, Layout, Pdu, digest_append};

use super::CAPSULE_DATA_BYTES_MAX;

/// PDO has 8 bits: nothing before the data is longer.
const HEAD_BYTES_MAX: usize = 256;

/// What a piece of the stream brought.
#[derive(Debug)]
pub enum Event<'a> {
    /// Nothing that is whole.
    More,
    /// A header, and how many bytes of data follow.
    Unit(Pdu, u32),
    /// Data of the last header.
    Data(&'a [u8]),
    /// That was all data of it; false if it is not what its digest says.
    End(bool),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    Data { left_bytes: u32, digest: u32, has_digest: bool },
    Digest { digest: u32, octets: [u8; DIGEST_BYTES], have: usize },
}

/// The units that one side sends.
#[derive(Debug)]
pub struct Link {
    from: Direction,
    agreed: Agreed,
    head: [u8; HEAD_BYTES_MAX],
    have: usize,
    layout: Option<Layout>,
    state: State,
}

impl Link {
    /// Before anything is agreed; `from` says who sends.
    pub fn new(from: Direction) -> Link {
        let (agreed, head) = (Agreed::NOTHING, [0; HEAD_BYTES_MAX]);
        Link { from, agreed, head, have: 0, layout: None, state: State::Head }
    }

    /// What holds for the next units.
    pub fn agree(&mut self, agreed: Agreed) {
        self.agreed = agreed;
    }

    /// A unit is half here.
    pub fn is_within(&self) -> bool {
        !matches!(self.state, State::Head) || (self.have > 0 && self.layout.is_none_or(|_| !self.is_done()))
    }

    /// What was received of the header that was looked at last.
    pub fn header(&self) -> &[u8] {
        let header_bytes = self.layout.map_or(Common::BYTES, |layout| layout.header_bytes);
        &self.head[..self.have.min(header_bytes)]
    }

    /// Takes what belongs together from the front of `bytes`, which are not empty; says how much that was.
    pub fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Event<'a>), Fatal> {
        match &mut self.state {
            State::Head => self.take_head(bytes),
            State::Data { left_bytes, digest, has_digest } => {
                let piece = &bytes[..bytes.len().min(*left_bytes as usize)];
                *left_bytes -= piece.len() as u32;
                if *has_digest {
                    *digest = digest_append(*digest, piece);
                }
                if *left_bytes == 0 {
                    let digest = has_digest.then_some(*digest);
                    self.state = State::Digest {
                        digest: digest.unwrap_or(0),
                        octets: [0; DIGEST_BYTES],
                        have: if digest.is_some() { 0 } else { DIGEST_BYTES },
                    };
                }
                Ok((piece.len(), Event::Data(piece)))
            }
            State::Digest { digest, octets, have } => {
                let take = (DIGEST_BYTES - *have).min(bytes.len());
                octets[*have..*have + take].copy_from_slice(&bytes[..take]);
                *have += take;
                if *have < DIGEST_BYTES {
                    return Ok((take, Event::More));
                }
                let sound = u32::from_le_bytes(*octets) == *digest;
                self.state = State::Head;
                Ok((take, Event::End(sound)))
            }
        }
    }

    /// Data without digest has shown its last byte: what [`Link::take`] would say needs no more bytes.
    pub fn take_end(&mut self) -> bool {
        let ended = matches!(self.state, State::Digest { have: DIGEST_BYTES, .. });
        if ended {
            self.state = State::Head;
        }
        ended
    }

    fn is_done(&self) -> bool {
        self.layout.is_some_and(|layout| self.have >= layout.data_at)
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Event<'a>), Fatal> {
        if self.is_done() {
            (self.have, self.layout) = (0, None);
        }
        let needed_bytes = self.layout.map_or(Common::BYTES, |layout| layout.data_at);
        let take = (needed_bytes - self.have).min(bytes.len());
        self.head[self.have..self.have + take].copy_from_slice(&bytes[..take]);
        self.have += take;
        if self.have < needed_bytes {
            return Ok((take, Event::More));
        }
        let Some(layout) = self.layout else {
            self.layout = Some(self.layout()?);
            return Ok((take, Event::More));
        };
        layout.check_header_digest(&self.head)?;
        let pdu = Pdu::parse(&layout, &self.head)?;
        if layout.data_bytes > 0 {
            self.state =
                State::Data { left_bytes: layout.data_bytes, digest: 0, has_digest: layout.data_digest };
        }
        Ok((take, Event::Unit(pdu, layout.data_bytes)))
    }

    fn layout(&self) -> Result<Layout, Fatal> {
        let common = Common::parse(self.head.first_chunk().ok_or(Fatal::field(0))?);
        let data_bytes_max = match (self.from, common.kind) {
            (Direction::HostToController, Kind::H2C_DATA) => IO_BYTES_MAX as u32,
            (Direction::HostToController, _) => CAPSULE_DATA_BYTES_MAX,
            // A controller may send as much in one unit as was asked for.
            (Direction::ControllerToHost, _) => u32::MAX,
        };
        common.layout(self.from, self.agreed, data_bytes_max)
    }
}
