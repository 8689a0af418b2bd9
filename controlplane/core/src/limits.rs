//! Limits of the ledger as somebody set them. Each is of something that is there, and goes when that goes.

use contract::{Answer, Dim, Limit, NodeId, Refused, Scope};

use crate::Core;
use crate::commands::missing;
use crate::record::{Key, Record, Write};

/// Most limits.
const LIMITS_MAX: usize = 4_096;
/// Limits that may go together with a node: each is a write, and a step has room for a few.
const GO_TOGETHER_MAX: usize = 32;

/// The words under which a limit is kept.
pub(crate) fn words(dim: Dim, scope: Scope) -> String {
    format!("{dim}/{scope}")
}

impl Core {
    pub(crate) fn limit_put(&mut self, limit: Limit) -> Result<Answer, Refused> {
        let limit = Limit { scope: self.known(limit.scope)?, ..limit };
        let words = words(limit.dim, limit.scope);
        if self.limits.len() >= LIMITS_MAX && !self.limits.contains_key(&words) {
            return Err(Refused::TooMany { what: "limits".into(), max: LIMITS_MAX as u64 });
        }
        let key = Key::Limit(words.clone());
        self.out.writes.push(Write { key, record: Some(Record::Limit(limit)) });
        self.limits.insert(words, limit);
        self.ledger.set_limit(limit);
        self.look_again(limit.dim, limit.scope);
        Ok(Answer::default())
    }

    pub(crate) fn limit_delete(&mut self, dim: Dim, scope: Scope) -> Result<Answer, Refused> {
        let scope = in_order(scope);
        if !self.forget_limit(dim, scope) {
            return Err(Refused::NotFound(format!("limit of {dim} at {scope}")));
        }
        self.look_again(dim, scope);
        Ok(Answer::default())
    }

    /// What was limited is gone.
    pub(crate) fn forget_limits(&mut self, scopes: &[Scope]) {
        for scope in scopes {
            for dim in Dim::ALL {
                self.forget_limit(dim, *scope);
            }
        }
    }

    /// Where limits are set that are of a node, or that there are too many to go with it.
    pub(crate) fn scopes_of(&self, id: NodeId) -> Result<Vec<Scope>, Refused> {
        let of_it = |scope: &Scope| match scope {
            Scope::Node(node) => *node == id,
            Scope::Link(one, other) => *one == id || *other == id,
            _ => false,
        };
        let scopes: Vec<Scope> = self.limits.values().map(|limit| limit.scope).filter(of_it).collect();
        if scopes.len() > GO_TOGETHER_MAX {
            let count = scopes.len();
            return Err(Refused::Conflict(format!(
                "{count} limits are of {id} and its links; remove all but {GO_TOGETHER_MAX} first"
            )));
        }
        Ok(scopes)
    }

    fn forget_limit(&mut self, dim: Dim, scope: Scope) -> bool {
        let words = words(dim, scope);
        let was = self.limits.remove(&words).is_some();
        if was {
            self.ledger.remove_limit(dim, scope);
            self.out.writes.push(Write { key: Key::Limit(words), record: None });
        }
        was
    }

    fn look_again(&mut self, dim: Dim, scope: Scope) {
        self.queue.unpark(dim, scope);
        self.failovers.retry();
    }

    /// A scope as the ledger counts it, if what it names is there.
    fn known(&self, scope: Scope) -> Result<Scope, Refused> {
        let node = |id: NodeId| self.nodes.get(id).map(drop).ok_or_else(missing(&id));
        match scope {
            Scope::Fleet | Scope::Kind(_) => {}
            Scope::Node(id) => node(id)?,
            Scope::Link(one, other) if one == other => {
                let why = "a link is between two nodes; name another one, or limit the node itself";
                return Err(Refused::Invalid(why.into()));
            }
            Scope::Link(one, other) => node(one).and_then(|()| node(other))?,
            Scope::Volume(id) => self.volumes.get(id).map(drop).ok_or_else(missing(&id))?,
            Scope::Tenant(id) => self.tenants.get(id).map(drop).ok_or_else(missing(&id))?,
        }
        Ok(in_order(scope))
    }
}

/// A link is the same both ways.
fn in_order(scope: Scope) -> Scope {
    match scope {
        Scope::Link(one, other) => Scope::link(one, other),
        other => other,
    }
}
