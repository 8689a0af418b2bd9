//! What goes into a step and what comes out of it.

use contract::{Answer, FromNode, Name, NodeId, OperationId, Refused, Request, ToNode, VolumeId};
use verdict::{Decided, Question, Tick, Verdict};

use crate::record::Write;

/// Something that the shell heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Nothing; time went on. Due at [`Effects::wake_ms`] at the latest.
    Tick,
    /// A node said something. A session is one connection; its number is never used again.
    Node {
        /// The connection.
        session: u64,
        /// What it said.
        message: FromNode,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        session: u64,
    },
    /// Somebody asked for something.
    Request {
        /// Comes back with the answer.
        token: u64,
        /// What.
        request: Request,
    },
    /// A policy answered.
    Decided {
        /// [`Ask::id`].
        ask: u64,
        /// What it said; the host has put the native default in the place of nonsense.
        decided: Decided<Verdict>,
    },
}

/// What the shell does after a step, in this order: all of `writes` (at most [`crate::WRITES_MAX`], each key once) in one
/// transaction, and only when that is durable the rest. Until then nothing of it may be done, and nothing that was asked
/// may be answered: the process waits, or ends and recovers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// To the store.
    pub writes: Vec<Write>,
    /// To nodes, by session; dropped if the session is gone.
    pub sends: Vec<(u64, ToNode)>,
    /// To those who asked.
    pub replies: Vec<Reply>,
    /// To the policies, answered by [`Input::Decided`].
    pub asks: Vec<Ask>,
    /// To the log, and to who is on call.
    pub alarms: Vec<Alarm>,
    /// When the next [`Input::Tick`] is due at the latest, in the time of the argument of `step`.
    pub wake_ms: u64,
}

/// An answer to somebody.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// [`Input::Request::token`].
    pub token: u64,
    /// What is answered.
    pub result: Result<Answer, Refused>,
}

/// A decision to be taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Comes back with the answer.
    pub id: u64,
    /// Time and randomness for it.
    pub tick: Tick,
    /// The question.
    pub question: Question,
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A node is lost.
    NodeLost(NodeId),
    /// A node wants to be part of the fleet and is not taken in.
    NodeRefused {
        /// What it calls itself.
        name: Name,
        /// What is wrong, and what to do.
        why: String,
    },
    /// So many nodes vanished at once that none is judged.
    ValveShut {
        /// Nodes that vanished.
        silent: usize,
        /// Of so many.
        of: usize,
    },
    /// The policy passed an operation over for too long, though it could run.
    Starving(OperationId),
    /// No node has room for a volume that must be recovered; nobody's lease was revoked for it.
    NoRoom(VolumeId),
    /// A volume is on a lost node and its files are nowhere else.
    OutOfReach(VolumeId),
    /// A policy's answer was refused or late and the native default answered.
    Policy {
        /// Which question.
        function: &'static str,
        /// Why.
        why: String,
    },
    /// A move was to begin by now and has not.
    LateMove {
        /// Which.
        operation: OperationId,
        /// What holds it.
        why: String,
    },
    /// All producers have weight 0.
    NoWeights,
    /// An operation was given up.
    GaveUp {
        /// Which.
        operation: OperationId,
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Alarm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Alarm::NodeLost(node) => write!(f, "{node} is lost, and others take over what they can; start it again, or `tidegate node remove` it"),
            Alarm::NodeRefused { name, why } => write!(f, "the node {name} is not taken in: {why}"),
            Alarm::ValveShut { silent, of } => write!(
                f,
                "{silent} of {of} nodes fell silent at once; nobody is judged until they are heard; if they are gone indeed, \
                 `tidegate node open-valve`"
            ),
            Alarm::Starving(id) => write!(f, "{id} could run but the scheduling policy passes it over; `tidegate policy activate` another"),
            Alarm::NoRoom(volume) => {
                write!(f, "no node has room for {volume}; no lease was revoked; free some or add a node")
            }
            Alarm::OutOfReach(volume) => {
                write!(f, "the files of {volume} are on a lost node and nowhere else; start that node again")
            }
            Alarm::Policy { function, why } => {
                write!(f, "the native default answered {function} instead of the policy: {why}; `tidegate policy rollback` goes back")
            }
            Alarm::LateMove { operation, why } => {
                write!(f, "{operation} was to begin by now and has not: {why}; `tidegate explain {operation}` says more")
            }
            Alarm::NoWeights => f.write_str("every producer has weight 0 and all are taken as equal; `tidegate policy activate` another leasing policy"),
            Alarm::GaveUp { operation, why } => write!(f, "{operation} was given up: {why}; see to that and ask for it again"),
        }
    }
}

/// How often things happened since the control plane started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps.
    pub steps: u64,
    /// Reports taken.
    pub reports: u64,
    /// Reports dropped because a later one was there, or nobody knew the sender.
    pub reports_dropped: u64,
    /// Events registered.
    pub events: u64,
    /// Registered again while open.
    pub folded: u64,
    /// Decisions taken, by whomever.
    pub decisions: u64,
    /// Of these by the native default in place of a policy.
    pub native_instead: u64,
    /// Single assignments, victims or times that were refused after the policy's answer as a whole was sound.
    pub refused: u64,
    /// Answers that nobody waited for any more.
    pub late_answers: u64,
    /// Operations begun.
    pub scheduled: u64,
    /// Operations done.
    pub done: u64,
    /// Operations failed or given up.
    pub failed: u64,
    /// Instructions sent, repeats included.
    pub instructions: u64,
    /// Snapshots sent, repeats included.
    pub snapshots: u64,
    /// Leases granted.
    pub leases: u64,
    /// Leases revoked.
    pub revoked: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Reports about producers that the consumer has no lease of.
    pub votes_dropped: u64,
    /// Nodes declared lost.
    pub lost: u64,
    /// Introductions of nodes that were not taken in.
    pub nodes_refused: u64,
    /// Times that the valve shut.
    pub valve_shut: u64,
    /// Times that the watcher was late.
    pub late_watches: u64,
    /// Plans made anew because the load broke its pattern.
    pub replanned: u64,
}
