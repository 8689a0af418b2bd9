//! Why anything is as it is: the constraint, the node, and who decided.

use contract::{
    EventId, Explanation, Grounds, Holder, LeaseId, LeaseState, NodeId, NodeState, Operation, OperationId,
    Phase, Reason, VolumeId, VolumeState,
};

use crate::Core;

/// What is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A volume.
    Volume(VolumeId),
    /// An operation.
    Operation(OperationId),
    /// An event.
    Event(EventId),
    /// A lease.
    Lease(LeaseId),
    /// A node.
    Node(NodeId),
}

impl std::str::FromStr for About {
    type Err = contract::IdError;

    fn from_str(text: &str) -> Result<About, contract::IdError> {
        match text.split('/').next() {
            Some("volume") => text.parse().map(About::Volume),
            Some("operation") => text.parse().map(About::Operation),
            Some("event") => text.parse().map(About::Event),
            Some("lease") => text.parse().map(About::Lease),
            Some("node") => text.parse().map(About::Node),
            _ => Err(contract::IdError { text: text.to_owned(), sort: "volume|operation|event|lease|node" }),
        }
    }
}

fn because(text: String) -> Reason {
    Reason { text, node: None, policy: None }
}

impl Core {
    /// Says why something is as it is; none if it is not there.
    pub fn explain(&self, about: About) -> Option<Explanation> {
        match about {
            About::Volume(id) => self.explain_volume(id),
            About::Operation(id) => self.explain_operation(id),
            About::Event(id) => {
                let event = self.events.get(id)?;
                let state = format!(
                    "{:?} of {}, registered by {} {} ms ago and {} times since; {:?}",
                    event.kind,
                    event.subject,
                    event.trigger,
                    self.now().saturating_sub(event.registered_ms),
                    event.folded,
                    event.status
                );
                let work = event.operation.and_then(|id| self.explain_operation(id));
                let reasons = work.map_or_else(Vec::new, |work| {
                    let mut reasons = vec![because(format!("{}: {}", work.about, work.state))];
                    reasons.extend(work.reasons);
                    reasons
                });
                Some(Explanation { about: id.to_string(), state, reasons })
            }
            About::Lease(id) => self.explain_lease(id),
            About::Node(id) => self.explain_node(id),
        }
    }

    fn explain_operation(&self, id: OperationId) -> Option<Explanation> {
        let operation = self.operations.get(id)?;
        let mut reasons = Vec::new();
        if let Some(late_ms) = self.late_ms(id) {
            reasons.push(because(format!("it was to begin {late_ms} ms ago at the latest")));
        }
        if let Some(blocked) = self.operation_blocked(operation) {
            let node = match blocked {
                contract::Blocked::Node { node, .. } | contract::Blocked::Grace { node, .. } => Some(node),
                contract::Blocked::Limit { scope: contract::Scope::Node(node), .. } => Some(node),
                _ => operation.target.or(operation.source),
            };
            let policy =
                matches!(blocked, contract::Blocked::Policy { .. }).then(|| operation.policy.clone());
            reasons.push(Reason { text: blocked.to_string(), node, policy });
        }
        if !operation.why.is_empty() {
            let node = operation.target.or(operation.source);
            let policy = Some(operation.policy.clone());
            reasons.push(Reason { text: operation.why.clone(), node, policy });
        }
        if let Some(plan) = operation.plan {
            let text = format!(
                "it begins in {} ms, with an estimated blackout of {} us, the choice of {} times",
                plan.starts_ms.saturating_sub(self.now()),
                plan.blackout_us,
                plan.candidates
            );
            reasons.push(Reason { text, node: operation.target, policy: Some(operation.policy.clone()) });
        }
        if let Some(Grounds { why, by }) = operation.profile.clone() {
            reasons.push(Reason {
                text: format!("the load of its volume: {why}"),
                node: None,
                policy: Some(by),
            });
        }
        if let Some(event) = self.events.get(operation.event) {
            reasons.push(because(format!("{} was registered by {}", event.id, event.trigger)));
        }
        let state = operation_state(operation);
        Some(Explanation { about: id.to_string(), state, reasons })
    }

    /// What holds an operation up, as it is now.
    fn operation_blocked(&self, operation: &Operation) -> Option<contract::Blocked> {
        use contract::Blocked;
        if operation.phase.is_over() {
            return None;
        }
        let now = self.now();
        if operation.phase == Phase::Waiting
            && let Some(plan) = operation.plan.filter(|plan| plan.starts_ms > now)
        {
            return Some(Blocked::Time { remaining_ms: plan.starts_ms - now });
        }
        if operation.phase == Phase::Scheduled && operation.not_before_ms > now {
            return Some(Blocked::Time { remaining_ms: operation.not_before_ms - now });
        }
        match operation.blocked_on.clone()? {
            Blocked::Node { node, .. } => Some(Blocked::Node { node, state: self.liveness.state(node) }),
            Blocked::Grace { node, .. } => {
                Some(Blocked::Grace { node, remaining_ms: self.grace_left_ms(node) })
            }
            other => Some(other),
        }
    }

    fn explain_volume(&self, id: VolumeId) -> Option<Explanation> {
        let volume = self.volumes.get(id)?;
        let mut reasons = Vec::new();
        let state = match (volume.state, volume.head) {
            (VolumeState::Serving, Some(head)) => format!("served by {} under {}", head.node, head.epoch),
            (VolumeState::Recovering, Some(head)) => {
                format!("{} served it and is {}", head.node, self.liveness.state(head.node))
            }
            (VolumeState::Recovering, None) => "it gave its place up and waits for another".into(),
            (VolumeState::Creating, _) => "being made".into(),
            (VolumeState::Deleting, _) => "being deleted".into(),
            (VolumeState::Failed, _) => "it could not be made; delete it".into(),
            (VolumeState::Serving, None) => "nobody serves it".into(),
        };
        let lost = |node: NodeId| self.liveness.state(node) == NodeState::Lost;
        if let Some(home) = volume.home.filter(|home| lost(*home)) {
            let text = format!("its files are on {home}, which is lost, and nowhere else");
            reasons.push(Reason { text, node: Some(home), policy: None });
        }
        if self.liveness.is_shut() {
            reasons.push(because(
                "many nodes fell silent at once, so none is judged; open the valve if they are lost".into(),
            ));
        }
        for operation in self.index.operations_of.get(&id).into_iter().flatten() {
            let Some(explanation) = self.explain_operation(*operation) else { continue };
            reasons.push(because(format!("{}: {}", explanation.about, explanation.state)));
            reasons.extend(explanation.reasons);
        }
        if let Some(lease) = volume.head.and_then(|head| self.leases.get(head.lease)) {
            let policy = lease.policy.clone();
            reasons.push(Reason { text: lease.why.clone(), node: Some(lease.producer), policy });
        }
        Some(Explanation { about: id.to_string(), state, reasons })
    }

    fn explain_lease(&self, id: LeaseId) -> Option<Explanation> {
        let lease = self.leases.get(id)?;
        let left = self.lease_remaining_ms(id)?;
        let class = format!("{:?}", lease.class).to_lowercase();
        let state = match lease.state {
            LeaseState::Active => {
                format!(
                    "{class}: {} has {} of {}, {left} ms left",
                    lease.holder, lease.resources, lease.producer
                )
            }
            LeaseState::Revoked { ends_ms } => format!(
                "revoked: {} has {} ms left to leave {}",
                lease.holder,
                ends_ms.saturating_sub(self.now()),
                lease.producer
            ),
        };
        let policy = lease.policy.clone();
        let why = Reason { text: lease.why.clone(), node: Some(lease.producer), policy };
        let mut reasons = vec![why];
        if let Holder::Operation(operation) = lease.holder {
            reasons.extend(self.explain_operation(operation).map(|work| because(work.state)));
        }
        Some(Explanation { about: id.to_string(), state, reasons })
    }

    fn explain_node(&self, id: NodeId) -> Option<Explanation> {
        let node = self.nodes.get(id)?;
        let account = self.accounts.node(id);
        let silent = self.liveness.silent_ms(id, self.now());
        let state = format!("{}, heard {silent} ms ago", self.liveness.state(id));
        let mut reasons = vec![
            because(format!("it has {}", account.capacity)),
            because(format!("firm: {}", account.firm)),
            because(format!("revocable: {}; on its way out: {}", account.revocable, account.leaving)),
        ];
        if node.state == NodeState::Lost {
            let what = "it is lost: what it has counts for nothing until it is back; start it again, or `tidegate \
                        node remove` it when its volumes are elsewhere";
            reasons.push(because(what.into()));
        }
        if node.cordoned {
            reasons.push(because("it is cordoned: it gets nothing new".into()));
        }
        if self.liveness.is_shut() {
            reasons.push(because("the valve is shut: nobody is declared lost; `tidegate node open-valve` if they are gone indeed".into()));
        }
        for (dim, scope, used) in self.ledger.uses() {
            if scope == contract::Scope::Node(id) {
                let max = self.ledger.max(dim, scope).map_or("no limit".into(), |max| max.to_string());
                reasons.push(because(format!("{dim}: {used} of {max} in use or scheduled")));
            }
        }
        for refused in self.links.get(id).map_or(&[][..], |link| &link.refused) {
            let name = self.tenants.get(refused.tenant).map(|tenant| tenant.name.to_string());
            let whose = name.unwrap_or_else(|| refused.tenant.to_string());
            reasons.push(because(format!("it does not carry out the rules of {whose}: {}", refused.why)));
        }
        let (weight, policy) = self.weight_of(id);
        reasons.push(Reason { text: format!("new leases go to it by {weight}"), node: Some(id), policy });
        reasons.iter_mut().for_each(|reason| reason.node = Some(id));
        Some(Explanation { about: id.to_string(), state, reasons })
    }
}

fn operation_state(operation: &Operation) -> String {
    let kind = operation.work.kind();
    let volume = operation.volume;
    let step = operation.steps.get(usize::from(operation.at));
    match (operation.phase, step) {
        (Phase::Waiting, _) => format!("{kind} of {volume} waits"),
        (Phase::Scheduled, _) => format!("{kind} of {volume} is scheduled"),
        (Phase::Running, Some(step)) => {
            let (at, of) = (operation.at + 1, operation.steps.len());
            format!("{kind} of {volume} is at step {at} of {of}, {step}, try {}", operation.tries + 1)
        }
        (Phase::Undoing, Some(step)) => format!("{kind} of {volume} is taken back: {step}"),
        (Phase::Running | Phase::Undoing, None) => format!("{kind} of {volume} is nearly over"),
        (Phase::Done, _) => format!("{kind} of {volume} is done"),
        (Phase::Failed, _) => format!("{kind} of {volume} failed"),
        (Phase::Cancelled, _) => format!("{kind} of {volume} was given up"),
    }
}
