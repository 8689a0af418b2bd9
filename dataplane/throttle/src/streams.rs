//! The streams of one volume: where its last 16 sequences of requests ended.
//!
//! A request is sequential if it begins where one of them ended (US9639398 claim 1: membership is an offset
//! found among the monitored streams). The table is kept in order of use, so that the least recently used
//! stream makes room; 16 words are two cache lines and a scan of them is a handful of vector compares.

/// Streams per volume.
const STREAMS: usize = 16;
/// No stream: no request begins at the last byte there is.
const NONE: u64 = u64::MAX;

#[derive(Clone, Debug)]
pub(crate) struct Streams {
    /// Where each stream goes on, most recently used first.
    ends: [u64; STREAMS],
}

impl Streams {
    pub(crate) fn new() -> Streams {
        Streams { ends: [NONE; STREAMS] }
    }

    /// The stream that a request at `offset` continues.
    pub(crate) fn find(&self, offset: u64) -> Option<usize> {
        self.ends.iter().position(|&end| end == offset && end != NONE)
    }

    /// Notes that a request ended at `end`: the continuation of `stream`, or a new one.
    pub(crate) fn note(&mut self, stream: Option<usize>, end: u64) {
        let last = stream.unwrap_or(STREAMS - 1);
        self.ends[..=last].rotate_right(1);
        self.ends[0] = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of 10 that turn by turn continue `streams` sequences: how many are seen as sequential.
    fn hits(streams: u64, rounds: u64) -> usize {
        let mut table = Streams::new();
        let mut hits = 0;
        for round in 0..rounds {
            for stream in 0..streams {
                let offset = stream * 1_000_000 + round * 10;
                let found = table.find(offset);
                hits += usize::from(found.is_some());
                table.note(found, offset + 10);
            }
        }
        hits
    }

    #[test]
    fn sixteen_streams_fit_and_seventeen_evict_each_other() {
        assert_eq!(hits(1, 10), 9);
        assert_eq!(hits(16, 10), 16 * 9);
        assert_eq!(hits(17, 10), 0);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_stream() {
        let mut table = Streams::new();
        assert_eq!(table.find(u64::MAX), None);
        table.note(None, u64::MAX);
        assert_eq!(table.find(u64::MAX), None);
    }
}
