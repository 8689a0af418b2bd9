//! Mistakes planted on purpose, to see them caught. Each sits between the product and this world: in what is passed on,
//! in how a node keeps what it promised, in how effects are carried out.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The media take writes of any epoch.
    SkipFence,
    /// A new head is granted the epoch of the old one.
    SameEpoch,
    /// Messages leave before the writes of their step are durable.
    SendBeforeCommit,
    /// The store loses one write of a transaction now and then.
    LostWrite,
    /// A node forgets over a restart which instructions it carried out.
    ForgetfulNode,
    /// A node takes instructions that are older than what it was told to forget.
    StaleInstruction,
    /// A node forgets over a restart that it froze a volume.
    ForgottenFreeze,
    /// The limit of a node does not reach the ledger.
    LostLimit,
    /// A node's capacity is counted twice.
    DoubleCapacity,
    /// Nodes are judged after a quarter of the time.
    HastyJudge,
    /// A watcher that was away judges as if it had not been.
    LateWatcher,
    /// A policy that does not answer is waited for.
    PatientWithPolicies,
    /// What somebody asks again is taken for something new.
    LostKey,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 13] = [
        Bug::SkipFence,
        Bug::SameEpoch,
        Bug::SendBeforeCommit,
        Bug::LostWrite,
        Bug::ForgetfulNode,
        Bug::StaleInstruction,
        Bug::ForgottenFreeze,
        Bug::LostLimit,
        Bug::DoubleCapacity,
        Bug::HastyJudge,
        Bug::LateWatcher,
        Bug::PatientWithPolicies,
        Bug::LostKey,
    ];
}

impl std::str::FromStr for Bug {
    type Err = String;

    fn from_str(text: &str) -> Result<Bug, String> {
        let all = || Bug::ALL.map(|bug| format!("{bug:?}"));
        let known = Bug::ALL.into_iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(text));
        known.ok_or_else(|| format!("there is no bug {text}; there are {}", all().join(", ")))
    }
}
