//! `[trace]`: which I/Os are followed, and what is kept of them.

use engine::trace::{CollectorConfig, OutlierConfig};

use super::LowerError;
use super::file::{Export, File};

/// Requests kept, and outliers, at most.
const KEPT_MAX: usize = 65_536;
/// Records of a ring.
const RECORDS: std::ops::RangeInclusive<usize> = 64..=1 << 22;
/// Windows, ns.
const WINDOW_NS: std::ops::RangeInclusive<u64> = 1_000_000_000..=3_600_000_000_000;

fn error(what: String) -> LowerError {
    LowerError::Key { place: "[trace]".to_owned(), what }
}

/// Records of each worker that wait to be collected.
pub(crate) fn records(file: &File) -> Result<usize, LowerError> {
    let records = file.trace.records;
    if RECORDS.contains(&records) {
        return Ok(records);
    }
    Err(error(format!("records = {records} is out of range: {} to {}", RECORDS.start(), RECORDS.end())))
}

/// What is kept.
pub(crate) fn collector(file: &File) -> Result<CollectorConfig, LowerError> {
    let keys = &file.trace;
    for (name, value) in [("recent", keys.recent), ("outliers", keys.outliers)] {
        if value > KEPT_MAX {
            return Err(error(format!("{name} = {value} is too much: at most {KEPT_MAX}")));
        }
    }
    if !WINDOW_NS.contains(&keys.window.0) {
        return Err(error("window is 1s to 3600s".to_owned()));
    }
    let outlier = OutlierConfig {
        floor_ns: keys.outlier_floor.0,
        window_ns: keys.window.0,
        per_second_max: keys.outliers_per_second,
    };
    let (recent_max, outliers_max) = (keys.recent, keys.outliers);
    Ok(CollectorConfig { recent_max, outliers_max, outlier, ..CollectorConfig::default() })
}

/// One in how many requests of an export is followed.
pub(crate) fn sample(file: &File, export: &Export) -> u32 {
    export.sample.unwrap_or(file.trace.sample)
}
