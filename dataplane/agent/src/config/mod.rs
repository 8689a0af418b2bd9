//! Configuration: one TOML file per daemon, validated whole before anything changes.
//!
//! [`file`] is what a person writes, [`units`] how numbers carry units, [`lower`] turns a file into the
//! engine's [`engine::Plan`] and [`engine::Snapshot`]. An unknown key is refused with the nearest name that
//! exists.

pub mod control;
pub mod exports;
pub mod file;
mod limits;
pub mod lower;
mod names;
mod ports;
mod told;
pub(crate) mod traces;
pub mod units;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use file::File;
pub use lower::LowerError;
pub use names::{Names, Numbers};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not there, or not ours to read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Not TOML, or not ours.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, with the nearest name for an unknown key.
        message: String,
    },
}

/// Reads a file.
pub fn read(path: &Path) -> Result<File, ReadError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    parse(&text).map_err(|message| ReadError::Parse { path: path.to_owned(), message })
}

/// Parses the text of a file; the error says where and what.
pub fn parse(text: &str) -> Result<File, String> {
    let shrunk = |mut file: File| {
        // It is kept as long as the daemon runs, and grew by doubling.
        file.volume.shrink_to_fit();
        file.rule.shrink_to_fit();
        file.tenant.shrink_to_fit();
        file
    };
    toml::from_str(text).map(shrunk).map_err(|error| {
        let message = error.to_string().trim_end().to_owned();
        match suggestion(&message).map(|near| format!("did you mean `{near}`?")).or_else(|| advice(&message))
        {
            Some(hint) => format!("{message}\n{hint}"),
            None => message,
        }
    })
}

/// The nearest expected name in serde's "unknown field `x`, expected one of `a`, `b`".
fn suggestion(message: &str) -> Option<String> {
    let line =
        message.lines().find(|line| line.contains("unknown field") || line.contains("unknown variant"))?;
    let mut quoted = line.split('`').skip(1).step_by(2);
    let written = quoted.next()?;
    nearest(written, quoted).map(str::to_owned)
}

/// What to do about messages that say it in the words of the parser.
fn advice(message: &str) -> Option<String> {
    if message.contains("invalid socket address syntax") {
        let advice = "an address needs its port: \"192.0.2.1:4789\", or \"[2001:db8::1]:4789\"";
        return Some(advice.to_owned());
    }
    // The line that the parser shows: `1 | [port]`.
    let shown = message.lines().find_map(|line| line.split_once(" | ")).map(|(_, shown)| shown.trim())?;
    let table = shown.strip_prefix('[')?.strip_suffix(']')?;
    let several = message.contains("invalid type: map, expected a sequence");
    several.then(|| format!("there may be several: write [[{table}]]"))
}

/// The name among `known` that is most like `written`, if one is like it at all.
pub(crate) fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (strsim::jaro_winkler(written, name), name))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}
