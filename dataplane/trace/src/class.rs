//! What is usual in a class of I/Os, and from where on one is an outlier (capability F4, docs/decisions/020).
//!
//! A class is what can be compared: the same kind of request, of about the same length, on the same kind of medium,
//! whoever's volume it is. The threshold comes from the class itself, of the window before and the one under way:
//!
//! `max(median + 6 MAD, floor)`, and where more than a twentieth of the class lies above that, it has two modes, not
//! outliers: then at least the 99th percentile.
//!
//! What is compared is the time of an I/O without that in which its own volume's limit held it up.

use crate::histogram::Histogram;
use crate::record::{Kind, Medium, Stage};

/// How outliers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// No I/O that is quicker is an outlier, ns.
    pub floor_ns: u64,
    /// How long a population is compared with, ns.
    pub window_ns: u64,
    /// Outliers kept per second; more are counted as suppressed.
    pub per_second_max: u32,
}

impl Default for OutlierConfig {
    fn default() -> OutlierConfig {
        OutlierConfig { floor_ns: 1_000_000, window_ns: 10_000_000_000, per_second_max: 32 }
    }
}

/// I/Os before which nothing is said of a class.
pub const SAMPLES_MIN: u64 = 32;
/// The part of a class above which what is slow is a mode of it: one in so many.
const MODE_ONE_IN: u64 = 20;
const DEVIATIONS: u64 = 6;
/// Parts of a window after which the threshold is looked at again.
const LOOKS: u64 = 10;

/// What can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// What lies below the volume.
    pub medium: Medium,
    /// What is asked for.
    pub kind: Kind,
    /// How long it is: 0 up to 16 KiB, 1 up to 128 KiB, 2 beyond.
    pub length: u8,
}

impl Class {
    /// The class of a request of `len` bytes.
    pub fn of(medium: Medium, kind: Kind, len: u32) -> Class {
        let length = match len {
            0..=0x4000 => 0,
            0x4001..=0x2_0000 => 1,
            _ => 2,
        };
        // How long a range is that carries no payload matters little.
        let carries = matches!(kind, Kind::Read | Kind::Write | Kind::WriteFua | Kind::Compare);
        Class { medium, kind, length: if carries { length } else { 0 } }
    }
}

/// What is usual in a class now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual {
    /// Median of the whole, ns.
    pub median_ns: u64,
    /// Above it an I/O is an outlier, ns.
    pub threshold_ns: u64,
    /// I/Os that this was told from.
    pub samples: u64,
}

/// One class under observation: two windows of it.
#[derive(Debug)]
pub(crate) struct Observed {
    windows: [Window; 2],
    began_ns: u64,
    look_ns: u64,
    usual: Option<Usual>,
    /// Medians by stage, from the same population.
    stages_ns: [u64; Stage::COUNT],
}

#[derive(Debug)]
struct Window {
    whole: Histogram,
    stages: [Option<Histogram>; Stage::COUNT],
}

impl Window {
    fn new() -> Window {
        Window { whole: Histogram::new(), stages: [const { None }; Stage::COUNT] }
    }

    fn clear(&mut self) {
        self.whole.clear();
        self.stages.iter_mut().flatten().for_each(Histogram::clear);
    }
}

impl Observed {
    pub fn new(now_ns: u64) -> Observed {
        let windows = [Window::new(), Window::new()];
        Observed { windows, began_ns: now_ns, look_ns: now_ns, usual: None, stages_ns: [0; Stage::COUNT] }
    }

    /// What is usual, once enough was seen.
    pub fn usual(&self) -> Option<Usual> {
        self.usual
    }

    /// Takes an I/O that took `whole_ns`, so much of it in each stage. Returns what it is measured by, if it is an
    /// outlier: the population before it.
    pub fn take(
        &mut self,
        now_ns: u64,
        config: &OutlierConfig,
        whole_ns: u64,
        stages_ns: &[u64; Stage::COUNT],
    ) -> Option<Usual> {
        self.turn(now_ns, config);
        let outlier = self.usual.filter(|usual| whole_ns > usual.threshold_ns);
        let window = &mut self.windows[0];
        window.whole.record(whole_ns);
        for (stage, &ns) in window.stages.iter_mut().zip(stages_ns) {
            if ns > 0 {
                stage.get_or_insert_with(Histogram::new).record(ns);
            }
        }
        outlier
    }

    /// The stage that took most more than it usually does.
    pub fn culprit(&self, stages_ns: &[u64; Stage::COUNT]) -> Stage {
        let excess =
            |&&stage: &&Stage| stages_ns[stage as usize].saturating_sub(self.stages_ns[stage as usize]);
        // Of what a limit holds up nothing is said: it is meant.
        let stages =
            Stage::ALL.iter().filter(|stage| !matches!(stage, Stage::Io | Stage::Depends | Stage::Park));
        stages.max_by_key(excess).copied().unwrap_or(Stage::Io)
    }

    fn turn(&mut self, now_ns: u64, config: &OutlierConfig) {
        let population = self.windows[0].whole.total() + self.windows[1].whole.total();
        // Of few it is told anew whenever there are twice as many.
        let more = population >= self.usual.map_or(SAMPLES_MIN, |usual| 2 * usual.samples);
        let ended = now_ns.saturating_sub(self.began_ns) >= config.window_ns;
        if more || ended || now_ns >= self.look_ns {
            self.look_ns = now_ns + config.window_ns / LOOKS;
            self.look(config);
        }
        if ended {
            self.windows.swap(0, 1);
            self.windows[0].clear();
            self.began_ns = now_ns;
        }
    }

    fn look(&mut self, config: &OutlierConfig) {
        let mut whole = self.windows[0].whole.clone();
        whole.add(&self.windows[1].whole);
        if whole.total() < SAMPLES_MIN {
            return;
        }
        let median_ns = whole.quantile(0.5);
        let spread_ns = whole.deviation(median_ns).saturating_mul(DEVIATIONS);
        let mut threshold_ns = median_ns.saturating_add(spread_ns).max(config.floor_ns);
        if whole.above(threshold_ns) * MODE_ONE_IN > whole.total() {
            threshold_ns = threshold_ns.max(whole.quantile(0.99));
        }
        self.usual = Some(Usual { median_ns, threshold_ns, samples: whole.total() });
        for (at, median_ns) in self.stages_ns.iter_mut().enumerate() {
            let mut both = Histogram::new();
            self.windows.iter().filter_map(|window| window.stages[at].as_ref()).for_each(|one| both.add(one));
            // A stage that most of the class do not have usually takes no time.
            *median_ns = if both.total() * 2 > whole.total() { both.quantile(0.5) } else { 0 };
        }
    }
}
