//! The curve of docs/throttle.md for a volume with a bank and a peak, in bytes and seconds.

use std::fmt;

use crate::lab::Sample;

/// A volume's limits and where it stands.
///
/// What a volume that always asks has admitted t seconds after it began is
/// `min(peak_cap + peak*t, level + fill*t)`; `level` is what the bank held when it began, which follows from
/// when it was full for the last time and what was admitted since.
#[derive(Clone, Copy, Debug)]
pub struct Curve {
    /// Bytes.
    bank: f64,
    /// Bytes per second.
    fill: f64,
    /// Bytes per second.
    peak: f64,
    /// The last time that its bank was full.
    full: Option<Sample>,
    /// Just before it was asked this time.
    began: Option<Sample>,
    /// Seconds after `began` at which the line of the peak begins.
    asks_after: f64,
    /// When it began is not known exactly: nothing can be said of this run.
    pub disturbed: bool,
}

impl Curve {
    /// Of a volume with these limits, in bytes and bytes per second, whose bank is full.
    pub fn new(bank: f64, fill: f64, peak: f64) -> Curve {
        Curve { bank, fill, peak, full: None, began: None, asks_after: 0.0, disturbed: false }
    }

    /// The volume is asked for more than may pass from `first` on, so that its peak's bucket is empty then, and
    /// for nothing before `before`. If its bank was full then, `full` is the last instant at which it was.
    pub fn begin(&mut self, before: &Sample, full: &Sample, first: &Sample) {
        self.asks_after = first.seconds_since(before) - first.bytes_since(before) / self.peak;
        self.began = Some(*before);
        if self.level(before) >= self.bank {
            // Samples are milliseconds apart; what the bank holds at one of them tells the instant exactly.
            let shown = first.bank_bytes.expect("the volume has a bank") as f64;
            let drained_seconds = (shown + first.bytes_since(before) - self.bank) / self.fill;
            let since_full = first.seconds_since(full);
            // Else it was full again in between, after a stall that no sample saw.
            self.disturbed |= !(-0.001..=since_full + 0.001).contains(&drained_seconds);
            let mut exactly = *before;
            exactly.at_ns = first.at_ns - (drained_seconds.max(0.0) * 1e9) as u64;
            self.full = Some(exactly);
        }
    }

    /// What the bank holds at a sample.
    fn level(&self, at: &Sample) -> f64 {
        let Some(full) = &self.full else { return self.bank };
        if at.seconds_since(full) < 0.0 {
            return self.bank;
        }
        (self.bank + self.fill * at.seconds_since(full) - at.bytes_since(full)).min(self.bank)
    }

    /// What may have been admitted since `began` at the instant of a sample.
    fn admitted(&self, at: &Sample) -> f64 {
        let Some(began) = &self.began else { return 0.0 };
        let seconds = at.seconds_since(began);
        let by_peak = self.peak * (seconds - self.asks_after);
        let full_until = self.full.map_or(0.0, |full| full.seconds_since(began).max(0.0));
        by_peak.min(self.level(began) + self.fill * (seconds - full_until))
    }

    /// Compares what was admitted between two samples with the curve.
    pub fn window(&self, from: &Sample, to: &Sample) -> Window {
        Window {
            seconds: to.seconds_since(from),
            admitted: to.bytes_since(from),
            expected: self.admitted(to) - self.admitted(from),
        }
    }

    /// How much more was admitted since `began` than the limits allow, as a share of that; negative if less.
    pub fn beyond(&self, at: &Sample) -> f64 {
        let Some(began) = &self.began else { return 0.0 };
        at.bytes_since(began) / self.admitted(at) - 1.0
    }

    /// Whether the bank that the gateway shows is the bank that the samples make. It is never more; it is less
    /// after a stall in which it was full again and what it earned was lost.
    pub fn bank_follows(&self, at: &Sample) -> bool {
        let shown = at.bank_bytes.expect("the volume has a bank") as f64;
        let expected = self.level(at);
        println!("bank after a rest: {:.3} MB, expected {:.3} MB", shown / 1e6, expected / 1e6);
        let error = (shown - expected) / self.bank;
        assert!(error <= 0.01 || self.disturbed, "the bank holds {shown}, expected {expected}");
        error >= -0.01
    }
}

/// One second of it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub seconds: f64,
    pub admitted: f64,
    pub expected: f64,
}

impl Window {
    /// How far off, as a share of what was expected.
    pub fn error(&self) -> f64 {
        self.admitted / self.expected - 1.0
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window { seconds, admitted, expected } = self;
        write!(
            f,
            "| {seconds:.3} s | {:.3} MB | {:.3} MB | {:+.2} % |",
            admitted / 1e6,
            expected / 1e6,
            self.error() * 100.0
        )
    }
}
