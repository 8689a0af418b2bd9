//! What people and programs ask for: checked here, once, against what is there; then changed or registered.

use contract::{
    Answer, Bucket, Class, Command, Event, EventKind, EventStatus, LeaseState, Name, NodeId, NodeState,
    OperationKind, Phase, Refused, Request, Resources, Revision, Rule, Scope, Subject, Tenant, TenantId,
    Trigger, Volume, VolumeId, VolumeLimits, VolumeState, Work,
};

use crate::Core;
use crate::record::Remembered;
use crate::registry::{Registration, next};

/// Largest volume: what the data plane's format can hold.
const SIZE_BYTES_MAX: u64 = 64 << 40;
/// Sizes are multiples of a page.
const SIZE_BYTES_STEP: u64 = 4_096;
/// Longest idempotency key, bytes.
const KEY_LEN_MAX: usize = 128;
/// Reports about producers that one request may carry: it is stored whole under its key.
const OBSERVED_MAX: usize = 64;
/// Most rules of a tenant.
const RULES_MAX: usize = 4_096;
/// Largest limit of anything, so that sums of them do not overflow.
const LIMIT_MAX: u64 = 1 << 50;

impl Core {
    pub(crate) fn request(&mut self, request: Request) -> Result<Answer, Refused> {
        let key = request.idempotency_key;
        if key.len() > KEY_LEN_MAX {
            let why = format!("the idempotency key is longer than {KEY_LEN_MAX} bytes; use a shorter one");
            return Err(Refused::Invalid(why));
        }
        if let Command::LeaseAcquire { observed, .. } | Command::LeaseRenew { observed, .. } =
            &request.command
            && observed.len() > OBSERVED_MAX
        {
            let why = format!(
                "a request carries at most {OBSERVED_MAX} reports about producers; say the rest later"
            );
            return Err(Refused::Invalid(why));
        }
        if key.is_empty() {
            return self.command(request.command, request.expected_revision);
        }
        if let Some(answer) = self.answers.find(&key, &request.command) {
            return answer;
        }
        let command = request.command.clone();
        let result = self.command(request.command, request.expected_revision);
        // What may go another way next time is not remembered.
        if matches!(result, Err(Refused::NoRoom { .. } | Refused::TooMany { .. })) {
            return result;
        }
        self.meta_is_dirty = true;
        let number = next(&mut self.meta.last.answer);
        let remembered = Remembered { number, key, command, result: result.clone() };
        self.answers.remember(remembered, self.config.limits.keys, &mut self.out.writes);
        result
    }

    fn command(&mut self, command: Command, expected: Option<Revision>) -> Result<Answer, Refused> {
        let mut answer = self.carry_out(command, expected)?;
        // As it will be when this step is written.
        let volume = answer.volume.and_then(|id| {
            self.volumes.get(id).map(|volume| volume.revision.0 + u64::from(self.volumes.is_dirty(id)))
        });
        if let Some(revision) = volume {
            answer.revision = Revision(revision);
        }
        Ok(answer)
    }

    fn carry_out(&mut self, command: Command, expected: Option<Revision>) -> Result<Answer, Refused> {
        match (self.revision_of(&command)?, expected) {
            (Some(is), Some(expected)) if is != expected => {
                return Err(Refused::Revision { expected, is });
            }
            (None, Some(_)) => {
                let why =
                    "what this is about has no revision that could be compared; ask without an expected one";
                return Err(Refused::Invalid(why.into()));
            }
            _ => {}
        }
        match command {
            Command::TenantPut { name, vni, weight, rules } => self.tenant_put(name, vni, weight, rules),
            Command::TenantDelete { tenant } => self.tenant_delete(tenant),
            Command::VolumeCreate { name, tenant, size_bytes, pool, class, limits, on } => {
                let volume = self.new_volume(name, tenant, size_bytes, pool, class, limits)?;
                self.volume_create(volume, on)
            }
            Command::VolumeLimit { volume, limits } => self.volume_limit(volume, limits),
            Command::VolumeResize { volume, size_bytes } => self.volume_resize(volume, size_bytes),
            Command::VolumeDelete { volume, wipe } => self.volume_delete(volume, wipe),
            Command::VolumeScrub { volume } => self.ask_for(volume, Work::Scrub, None, None),
            Command::VolumeClone { volume, name } => self.volume_clone(volume, name),
            Command::VolumeExpand { volume } => self.ask_for(volume, Work::Expand, None, None),
            Command::VolumeMoveWorker { volume, worker } => {
                self.worker_is_there(volume, worker)?;
                self.ask_for(volume, Work::MoveWorker { worker }, None, None)
            }
            Command::VolumeMove { volume, to, at_once, deadline_ms } => {
                self.volume_move(volume, to, at_once, deadline_ms)
            }
            Command::NodeCordon { node, cordoned } => self.node_cordon(node, cordoned),
            Command::NodeRemove { node } => self.node_remove(node),
            Command::LimitPut(limit) => self.limit_put(limit),
            Command::LimitDelete { dim, scope } => self.limit_delete(dim, scope),
            Command::OperationCancel { operation } => self.operation_cancel(operation),
            Command::EventRegister { kind, volume, trigger } => self.event_register(kind, volume, trigger),
            Command::LeaseAcquire { consumer, resources, observed } => {
                self.acquire(consumer, resources, &observed)
            }
            Command::LeaseRenew { lease, consumer, observed } => self.renew(lease, &consumer, &observed),
            Command::LeaseRelease { lease, consumer } => self.release(lease, &consumer),
            Command::ValveOpen => {
                self.liveness.open_valve(self.clock.now_ms, &self.config);
                self.judge();
                Ok(Answer::default())
            }
        }
    }

    /// The revision of the object that a command changes, 0 of one that it makes; none if it has none.
    fn revision_of(&self, command: &Command) -> Result<Option<Revision>, Refused> {
        let id = match command {
            Command::TenantPut { name, .. } => {
                let tenant = self.index.tenants.get(name).and_then(|id| self.tenants.get(*id));
                return Ok(Some(tenant.map_or(Revision(0), |tenant| tenant.revision)));
            }
            Command::VolumeCreate { name, .. } => {
                let volume = self.index.volumes.get(name).and_then(|id| self.volumes.get(*id));
                return Ok(Some(volume.map_or(Revision(0), |volume| volume.revision)));
            }
            Command::OperationCancel { operation: id } => {
                let operation = self.operations.get(*id);
                return operation.map(|operation| Some(operation.revision)).ok_or_else(missing(id));
            }
            Command::TenantDelete { tenant } => {
                return self
                    .tenants
                    .get(*tenant)
                    .map(|tenant| Some(tenant.revision))
                    .ok_or_else(missing(tenant));
            }
            Command::NodeCordon { node, .. } | Command::NodeRemove { node } => {
                return self.nodes.get(*node).map(|node| Some(node.revision)).ok_or_else(missing(node));
            }
            Command::VolumeLimit { volume, .. }
            | Command::VolumeResize { volume, .. }
            | Command::VolumeDelete { volume, .. }
            | Command::VolumeScrub { volume }
            | Command::VolumeClone { volume, .. }
            | Command::VolumeExpand { volume }
            | Command::VolumeMoveWorker { volume, .. }
            | Command::VolumeMove { volume, .. }
            | Command::EventRegister { volume, .. } => *volume,
            Command::LimitPut(_)
            | Command::LimitDelete { .. }
            | Command::LeaseAcquire { .. }
            | Command::LeaseRenew { .. }
            | Command::LeaseRelease { .. }
            | Command::ValveOpen => return Ok(None),
        };
        self.volumes.get(id).map(|volume| Some(volume.revision)).ok_or_else(missing(&id))
    }

    fn tenant_put(
        &mut self,
        name: Name,
        vni: Option<u32>,
        weight: u32,
        rules: Vec<Rule>,
    ) -> Result<Answer, Refused> {
        if vni.is_some_and(|vni| vni >= 1 << 24) {
            return Err(Refused::Invalid("a VNI has 24 bits; use 0 to 16777215".into()));
        }
        if rules.len() > RULES_MAX {
            return Err(Refused::TooMany { what: "rules of one tenant".into(), max: RULES_MAX as u64 });
        }
        Rule::check(&rules).map_err(Refused::Invalid)?;
        let known = self.index.tenants.get(&name).copied();
        let others = self.tenants.iter().any(|(id, tenant)| Some(id) != known && tenant.vni == vni);
        if vni.is_some() && others {
            return Err(Refused::Exists(format!("a tenant with VNI {}", vni.unwrap_or(0))));
        }
        let id = match known {
            Some(id) => id,
            None => {
                let max = self.config.limits.tenants;
                if self.tenants.len() >= max {
                    return Err(Refused::TooMany { what: "tenants".into(), max: max as u64 });
                }
                self.meta_is_dirty = true;
                TenantId(next(&mut self.meta.last.tenant))
            }
        };
        let revision = self.tenants.get(id).map_or(Revision(0), |tenant| tenant.revision);
        self.index.tenants.insert(name.clone(), id);
        self.mark_network(&name);
        self.tenants.insert(id, Tenant { id, name, vni, weight, rules, revision });
        Ok(Answer { tenant: Some(id), revision: Revision(revision.0 + 1), ..Answer::default() })
    }

    fn tenant_delete(&mut self, id: TenantId) -> Result<Answer, Refused> {
        if self.index.volumes_of.get(&id).is_some_and(|count| *count > 0) {
            return Err(Refused::Conflict(format!("{id} has volumes; delete them first")));
        }
        if let Some(gone) = self.tenants.remove(id) {
            self.index.tenants.remove(&gone.name);
            self.forget_limits(&[Scope::Tenant(id)]);
            self.mark_network(&gone.name);
        }
        Ok(Answer { tenant: Some(id), ..Answer::default() })
    }

    fn new_volume(
        &self,
        name: Name,
        tenant: TenantId,
        size_bytes: u64,
        pool: Name,
        class: Class,
        limits: VolumeLimits,
    ) -> Result<Volume, Refused> {
        if self.index.volumes.contains_key(&name) {
            return Err(Refused::Exists(format!("a volume {name}")));
        }
        if self.tenants.get(tenant).is_none() {
            return Err(missing(&tenant)());
        }
        if !self.index.pools.contains_key(&pool) {
            return Err(Refused::NotFound(format!("pool {pool} on any node")));
        }
        let max = self.config.limits.volumes;
        if self.volumes.len() >= max {
            return Err(Refused::TooMany { what: "volumes".into(), max: max as u64 });
        }
        size_is_possible(size_bytes)?;
        limits_are_possible(&limits)?;
        Ok(Volume {
            id: VolumeId(0),
            name,
            tenant,
            size_bytes,
            pool,
            home: None,
            class,
            limits,
            state: VolumeState::Creating,
            epoch: contract::Epoch(0),
            head: None,
            standby: None,
            credits: None,
            revision: Revision(0),
        })
    }

    fn add_volume(&mut self, mut volume: Volume) -> VolumeId {
        self.meta_is_dirty = true;
        let id = VolumeId(next(&mut self.meta.last.volume));
        volume.id = id;
        self.index.volumes.insert(volume.name.clone(), id);
        *self.index.volumes_of.entry(volume.tenant).or_default() += 1;
        self.volumes.insert(id, volume);
        id
    }

    fn volume_create(&mut self, volume: Volume, on: Option<NodeId>) -> Result<Answer, Refused> {
        let need = volume.limits.sustained();
        if let Some(node) = on
            && self.nodes.get(node).is_none()
        {
            return Err(missing(&node)());
        }
        self.fleet_can_promise(volume.class, need)?;
        let id = self.add_volume(volume);
        self.make(id, Work::Create, on)
    }

    fn fleet_can_promise(&self, class: Class, need: Resources) -> Result<(), Refused> {
        let room = self.accounts.fleet_room();
        if class == Class::Revocable || need.fits(room) {
            return Ok(());
        }
        Err(Refused::Conflict(format!(
            "the fleet has room for {room} beside its contingency, and it needs {need}; add a node, lower its \
             limits, or make it best effort"
        )))
    }

    /// Registers the work that makes a volume; without it there is no volume.
    fn make(&mut self, id: VolumeId, work: Work, on: Option<NodeId>) -> Result<Answer, Refused> {
        let asked = self.ask_for(id, work, on, None);
        if asked.is_err() {
            self.remove_volume(id);
        }
        asked
    }

    pub(crate) fn remove_volume(&mut self, id: VolumeId) {
        let Some(gone) = self.volumes.remove(id) else { return };
        for operation in self.index.operations_of.get(&id).cloned().unwrap_or_default() {
            self.finish(operation, Phase::Cancelled, Some("the volume is gone"));
        }
        for lease in self.index.leases_of.get(&contract::Holder::Volume(id)).cloned().unwrap_or_default() {
            self.end_lease(lease);
        }
        self.index.volumes.remove(&gone.name);
        if let Some(count) = self.index.volumes_of.get_mut(&gone.tenant) {
            *count = count.saturating_sub(1);
        }
        self.forget_limits(&[Scope::Volume(id)]);
        self.histories.remove(id);
        self.links.forget_volume(id);
    }

    /// Registers that somebody asked for work.
    fn ask_for(
        &mut self,
        volume: VolumeId,
        work: Work,
        target: Option<NodeId>,
        deadline_ms: Option<u64>,
    ) -> Result<Answer, Refused> {
        let kind = EventKind::Requested(work.kind());
        let state = self.volumes.get(volume).map(|volume| volume.state);
        let makes =
            matches!(work.kind(), OperationKind::Create | OperationKind::Delete | OperationKind::Clone);
        if !makes && matches!(state, Some(VolumeState::Deleting | VolumeState::Failed)) {
            return Err(Refused::Conflict(format!(
                "{volume} is being deleted or could not be made; `tidegate explain {volume}` says why"
            )));
        }
        let trigger = Trigger::Request;
        let what = Registration { kind, volume, trigger, work, target, deadline_ms };
        let (event, operation) = self.register(what)?;
        let (volume, event, operation) = (Some(volume), Some(event), Some(operation));
        Ok(Answer { volume, event, operation, ..Answer::default() })
    }

    fn volume_limit(&mut self, id: VolumeId, limits: VolumeLimits) -> Result<Answer, Refused> {
        limits_are_possible(&limits)?;
        let Some(volume) = self.volumes.get(id) else { return Err(missing(&id)()) };
        let reserves = |operation: &&contract::OperationId| {
            self.operations.get(**operation).is_some_and(|operation| {
                let leases = !matches!(operation.work, Work::Clone { from } if from == id);
                operation.phase.counts() && leases && operation.work.kind().takes_lease()
            })
        };
        let under_way = self.index.operations_of.get(&id).into_iter().flatten().find(reserves);
        if let Some(operation) = under_way {
            let why = format!("{operation} is reserving room for it; wait until that is over");
            return Err(Refused::Conflict(why));
        }
        let after = limits.sustained();
        if let Some(head) = volume.head {
            let before = self.leases.get(head.lease).map_or(Resources::NONE, |lease| lease.resources);
            let more = after.minus(before);
            self.fleet_can_promise(volume.class, more)?;
            if !more.is_none() && !self.accounts.fits(head.node, volume.class, more, false) {
                let room = self.accounts.node(head.node).firm_room();
                return Err(Refused::Conflict(format!(
                    "{} has room for {room} more, and it needs {more}; move the volume first",
                    head.node
                )));
            }
            self.resize_lease(head.lease, after);
            self.make_room(head.node);
        }
        let Some(volume) = self.volumes.change(id) else { return Err(missing(&id)()) };
        volume.limits = limits;
        self.mark_volume(id);
        Ok(Answer { volume: Some(id), ..Answer::default() })
    }

    fn resize_lease(&mut self, id: contract::LeaseId, resources: Resources) {
        let Some(lease) = self.leases.get(id).filter(|lease| lease.state == LeaseState::Active) else {
            return;
        };
        let before = lease.clone();
        self.accounts.remove(&before);
        if let Some(lease) = self.leases.change(id) {
            lease.resources = resources;
            let after = lease.clone();
            self.accounts.add(&after);
        }
    }

    fn volume_resize(&mut self, id: VolumeId, size_bytes: u64) -> Result<Answer, Refused> {
        size_is_possible(size_bytes)?;
        let Some(volume) = self.volumes.get(id) else { return Err(missing(&id)()) };
        if size_bytes < volume.size_bytes {
            let why = format!(
                "{id} has {} bytes, and a volume cannot shrink; make a smaller one and copy what is in it",
                volume.size_bytes
            );
            return Err(Refused::Invalid(why));
        }
        self.ask_for(id, Work::Resize { size_bytes }, None, None)
    }

    fn volume_delete(&mut self, id: VolumeId, wipe: bool) -> Result<Answer, Refused> {
        let open: Vec<_> = self.index.operations_of.get(&id).into_iter().flatten().copied().collect();
        let reads = |operation: &&contract::OperationId| {
            let work = self.operations.get(**operation).map(|other| &other.work);
            matches!(work, Some(Work::Clone { from }) if *from == id)
        };
        if let Some(operation) = open.iter().find(reads) {
            return Err(Refused::Conflict(format!("{operation} copies it; wait until that is over")));
        }
        let answer = self.ask_for(id, Work::Delete { wipe }, None, None)?;
        // What only waits is pointless now, and only now: who is refused finds everything as it was.
        for operation in open {
            let waits = self.operations.get(operation).is_some_and(|other| {
                other.phase == Phase::Waiting && !matches!(other.work, Work::Delete { .. })
            });
            if waits {
                self.finish(operation, Phase::Cancelled, Some("the volume is being deleted"));
            }
        }
        if let Some(volume) = self.volumes.change(id) {
            volume.state = VolumeState::Deleting;
        }
        Ok(answer)
    }

    /// Whether the node that serves a volume has a worker of that number.
    fn worker_is_there(&self, id: VolumeId, worker: u16) -> Result<(), Refused> {
        let head = self.volumes.get(id).and_then(|volume| volume.head);
        let Some(node) = head.and_then(|head| self.nodes.get(head.node)) else { return Ok(()) };
        let workers = node.info.workers;
        if worker < workers {
            return Ok(());
        }
        let (id, last) = (node.id, workers.saturating_sub(1));
        Err(Refused::Invalid(format!(
            "{id} has {workers} workers, and none is number {worker}; use 0 to {last}"
        )))
    }

    fn volume_clone(&mut self, from: VolumeId, name: Name) -> Result<Answer, Refused> {
        let Some(read) = self.volumes.get(from) else { return Err(missing(&from)()) };
        if read.state == VolumeState::Deleting || read.state == VolumeState::Failed {
            return Err(Refused::Conflict(format!(
                "{from} is being deleted or could not be made; `tidegate explain {from}` says why"
            )));
        }
        let read = read.clone();
        let copy = self.new_volume(name, read.tenant, read.size_bytes, read.pool, read.class, read.limits)?;
        if copy.class == Class::Firm && !copy.limits.sustained().fits(self.accounts.fleet_room()) {
            let room = self.accounts.fleet_room();
            return Err(Refused::Conflict(format!(
                "the fleet has room for {room} beside its contingency; add a node, or lower the limits of {from}"
            )));
        }
        let id = self.add_volume(copy);
        self.make(id, Work::Clone { from }, None)
    }

    fn volume_move(
        &mut self,
        id: VolumeId,
        to: Option<NodeId>,
        at_once: bool,
        deadline_ms: Option<u64>,
    ) -> Result<Answer, Refused> {
        let head = self.volumes.get(id).and_then(|volume| volume.head);
        if let Some(to) = to {
            if self.nodes.get(to).is_none() {
                return Err(missing(&to)());
            }
            if head.is_some_and(|head| head.node == to) {
                return Err(Refused::Invalid(format!(
                    "{id} is on {to} already; name another node, or none to have one chosen"
                )));
            }
        }
        self.ask_for(id, Work::MoveNode { at_once }, to, deadline_ms)
    }

    fn node_cordon(&mut self, id: NodeId, cordoned: bool) -> Result<Answer, Refused> {
        let node = self.nodes.change(id).ok_or_else(missing(&id))?;
        node.cordoned = cordoned;
        let revision = Revision(node.revision.0 + 1);
        if cordoned {
            self.recheck_later();
        } else {
            self.node_can_serve();
        }
        Ok(Answer { revision, ..Answer::default() })
    }

    fn node_remove(&mut self, id: NodeId) -> Result<Answer, Refused> {
        let state = self.liveness.state(id);
        if state != NodeState::Lost {
            return Err(Refused::Conflict(format!("{id} is {state}; stop it first")));
        }
        let holds = self.index.volumes_at.contains_key(&id) || self.index.operations_at.contains_key(&id);
        let home = self.volumes.iter().any(|(_, volume)| volume.home == Some(id));
        if holds || home || self.index.leases_at.contains_key(&id) {
            let why = format!("{id} still has volumes, operations or leases; move or delete them first");
            return Err(Refused::Conflict(why));
        }
        let limited = self.scopes_of(id)?;
        // Nothing was promised of it since it was lost.
        self.accounts.remove_node(id);
        self.liveness.remove(id);
        self.producers.remove(id);
        self.links.forget_node(id);
        if let Some(gone) = self.nodes.remove(id) {
            self.index.nodes.remove(&gone.info.name);
            self.forget_limits(&limited);
        }
        Ok(Answer::default())
    }

    fn operation_cancel(&mut self, id: contract::OperationId) -> Result<Answer, Refused> {
        let operation = self.operations.get(id).ok_or_else(missing(&id))?;
        if operation.work == Work::Failover {
            return Err(Refused::Conflict("a failover is not given up, since its volume would stay lost; `tidegate explain` says what it waits for".into()));
        }
        let is_begun = matches!(operation.phase, Phase::Scheduled | Phase::Running);
        if matches!(operation.work, Work::MoveNode { .. }) && operation.granted.is_none() && is_begun {
            // The volume is still served where it was: it goes on there.
            self.fail(id, "somebody gave it up");
            return Ok(Answer { operation: Some(id), ..Answer::default() });
        }
        if !matches!(operation.phase, Phase::Waiting) {
            return Err(Refused::Conflict(format!(
                "{id} runs already or is over; `tidegate operation get {}` shows how far it is",
                id.0
            )));
        }
        let deletes = matches!(operation.work, Work::Delete { .. });
        if deletes {
            return Err(Refused::Conflict(format!(
                "{} is being deleted already, and that is not taken back; make it anew",
                operation.volume
            )));
        }
        self.finish(id, Phase::Cancelled, Some("somebody gave it up"));
        Ok(Answer { operation: Some(id), ..Answer::default() })
    }

    fn event_register(
        &mut self,
        kind: EventKind,
        volume: VolumeId,
        trigger: Trigger,
    ) -> Result<Answer, Refused> {
        if matches!(kind, EventKind::Requested(_) | EventKind::HeadLost) {
            let why = "this event is registered by the control plane alone; ask for the work itself".into();
            return Err(Refused::Invalid(why));
        }
        let before = self.meta.last.event;
        self.condition(kind, volume, trigger);
        let open = self.index.open_events.get(&(kind, Subject::Volume(volume)));
        let Some(event) = open.and_then(|id| self.events.get(*id)) else {
            return Err(Refused::Conflict("it was dealt with just now, or there is nothing to do; `tidegate event list` shows what was done".into()));
        };
        let Event { id, operation, status, .. } = *event;
        debug_assert!(status == EventStatus::Open && self.meta.last.event >= before);
        Ok(Answer { volume: Some(volume), event: Some(id), operation, ..Answer::default() })
    }
}

pub(crate) fn missing<T: std::fmt::Display>(id: &T) -> impl Fn() -> Refused {
    let id = id.to_string();
    move || Refused::NotFound(id.clone())
}

fn size_is_possible(size_bytes: u64) -> Result<(), Refused> {
    if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX || !size_bytes.is_multiple_of(SIZE_BYTES_STEP) {
        return Err(Refused::Invalid(format!(
            "{size_bytes} bytes is not a size; use a multiple of {SIZE_BYTES_STEP} up to {SIZE_BYTES_MAX}"
        )));
    }
    Ok(())
}

fn limits_are_possible(limits: &VolumeLimits) -> Result<(), Refused> {
    let Bucket { rate, burst_bank, burst_fill, peak } = limits.operations;
    let Bucket { rate: bytes, burst_bank: bank, burst_fill: fill, peak: most } = limits.bytes;
    let all = [rate, burst_bank, burst_fill, peak, bytes, bank, fill, most, limits.weight];
    if all.iter().any(|value| *value > LIMIT_MAX) {
        return Err(Refused::Invalid(format!("a limit is above {LIMIT_MAX}; leave it out for no limit")));
    }
    Ok(())
}
