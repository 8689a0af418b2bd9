//! etcd's words in ours, and what it says when it does not do something.

use etcd_client::{Error, KeyValue, PutOptions, ResponseHeader};

use super::CALL_MAX;
use crate::{Entry, LeaseId, Refusal, Revision, StoreError};

/// Why a call was not answered as it should be.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It took too long.
    Late,
    /// The revision is forgotten.
    Compacted,
    /// The revision is not there yet.
    Future,
    /// There is no such lease.
    Lease,
    /// It does not answer, or cannot do it now.
    Away(String),
    /// It will not do it.
    Refused(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        let status = match &error {
            Error::GRpcStatus(status) => status,
            Error::LeaseKeepAliveError(said) if said == "lease not found" => return Trouble::Lease,
            // The client's words for a stream that ended before it was answered.
            Error::IoError(_) | Error::WatchError(_) | Error::LeaseKeepAliveError(_) | Error::Internal(_) => {
                return Trouble::Away(whole(&error));
            }
            // What is wrong with certificates.
            Error::TransportError(error) => return Trouble::Refused(whole(error)),
            _ => return Trouble::Refused(whole(&error)),
        };
        let said = status.message();
        if said.contains("required revision has been compacted") {
            return Trouble::Compacted;
        }
        if said.contains("required revision is a future revision") {
            return Trouble::Future;
        }
        if said.contains("requested lease not found") {
            return Trouble::Lease;
        }
        let passes = is_passing(i32::from(status.code()));
        if passes { Trouble::Away(whole(status)) } else { Trouble::Refused(whole(status)) }
    }
}

/// Whether a later attempt may go better, by the number of a status of gRPC: cancelled, unknown (what the transport
/// says), deadline exceeded, resource exhausted (etcd's space too), aborted, internal, unavailable.
fn is_passing(code: i32) -> bool {
    [1, 2, 4, 8, 10, 13, 14].contains(&code)
}

/// An error with what caused it.
fn whole(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    said
}

impl Trouble {
    /// As callers hear it; `place` is where etcd was looked for.
    pub fn told(self, place: &str) -> StoreError {
        let what = match self {
            Trouble::Late => format!("nothing came within {} s", CALL_MAX.as_secs()),
            Trouble::Lease => return Refusal::Lease.into(),
            Trouble::Refused(what) => {
                return StoreError::Failed(format!("etcd at {place} refuses: {what}").into());
            }
            Trouble::Away(what) => what,
            Trouble::Compacted => "it has forgotten a revision while that was read".to_owned(),
            Trouble::Future => "it does not know a revision yet that it told".to_owned(),
        };
        let advice = if what.contains("database space exceeded") {
            "have it compact and defragment (`etcdctl defrag`), then end its alarm (`etcdctl alarm disarm`)"
        } else {
            "see whether it runs, is reached from here, and has a leader (`etcdctl endpoint status`)"
        };
        StoreError::Away(format!("etcd at {place} does not do what it is asked: {what}; {advice}"))
    }
}

/// What is under a key.
pub(super) fn entry(found: &KeyValue) -> Entry {
    Entry {
        value: found.value().to_vec(),
        created: number(found.create_revision()),
        modified: number(found.mod_revision()),
        lease: (found.lease() != 0).then(|| LeaseId(number(found.lease()))),
    }
}

/// A key of etcd as ours.
pub(super) fn keys(key: &[u8], prefix: &str) -> Result<String, StoreError> {
    let ours = key.strip_prefix(prefix.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
    let no_text = || format!("the key {} was not written by a control plane", String::from_utf8_lossy(key));
    ours.map(str::to_owned).ok_or_else(|| StoreError::Failed(no_text().into()))
}

/// The revision that an answer is of.
pub(super) fn revision_of(header: Option<&ResponseHeader>) -> Revision {
    // INVARIANT: every answer of etcd has a header.
    header.map_or(0, |header| number(header.revision()))
}

/// Options of a key that goes with a lease.
pub(super) fn bound(lease: LeaseId) -> PutOptions {
    PutOptions::new().with_lease(signed(lease.0))
}

/// etcd's numbers are signed and never below 0.
pub(super) fn number(signed: i64) -> u64 {
    signed.cast_unsigned()
}

/// The other way; a number that etcd cannot have is one that it does not have.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
