//! Why a verdict is refused.

use thiserror::Error;

/// Why a verdict is refused; the sentence is for the author of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Invalid {
    /// Another variant than the question's.
    #[error("the verdict answers another question")]
    OtherQuestion,
    /// Columns that belong together differ in length.
    #[error("column `{column}` has {found} entries, but {wanted} belong there")]
    Ragged {
        /// Which one.
        column: &'static str,
        /// Its length.
        found: usize,
        /// What it should be.
        wanted: usize,
    },
    /// A row that the question does not have.
    #[error("`{column}` names row {row} of {rows}")]
    UnknownRow {
        /// In which column.
        column: &'static str,
        /// What it names.
        row: u32,
        /// How many there are.
        rows: usize,
    },
    /// The same thing twice.
    #[error("`{column}` names {value} twice")]
    Twice {
        /// In which column.
        column: &'static str,
        /// The row or id.
        value: u64,
    },
    /// A value outside what is allowed.
    #[error("`{field}` is {value}, but must lie in {min}..={max}")]
    OutOfRange {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// More than an account has left.
    #[error("candidate {row} and those before it need more of account {account} than its limit leaves")]
    OverLimit {
        /// The candidate that no longer fits.
        row: u32,
        /// Where.
        account: u32,
    },
    /// Weights that are not shares of a whole.
    #[error("the weights sum to {sum} millionths, and not to 1,000,000")]
    Sum {
        /// Of all.
        sum: u64,
    },
    /// Victims that do not give what is needed.
    #[error("the victims give {found} of {wanted} {resource} that are needed")]
    TooFew {
        /// Which resource.
        resource: &'static str,
        /// What they give.
        found: u64,
        /// What is needed.
        wanted: u64,
    },
    /// Nothing can give what is needed, so nobody may lose a lease for it.
    #[error("all leases together do not give what is needed, so none may be revoked")]
    InVain,
    /// A victim without which the others suffice.
    #[error("lease row {row} is revoked although the others give what is needed")]
    Superfluous {
        /// Which one.
        row: u32,
    },
    /// Text that is too long to keep.
    #[error("a text of {bytes} bytes is longer than {max}")]
    LongText {
        /// Its length.
        bytes: usize,
        /// The most.
        max: usize,
    },
}

/// Columns that belong together have the same length.
pub(crate) fn same_length(column: &'static str, found: usize, wanted: usize) -> Result<(), Invalid> {
    if found == wanted { Ok(()) } else { Err(Invalid::Ragged { column, found, wanted }) }
}

/// A value lies in its range.
pub(crate) fn in_range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), Invalid> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(Invalid::OutOfRange { field, value, min, max }) }
}

/// A row exists.
pub(crate) fn known_row(column: &'static str, row: u32, rows: usize) -> Result<usize, Invalid> {
    let at = row as usize;
    if at < rows { Ok(at) } else { Err(Invalid::UnknownRow { column, row, rows }) }
}
