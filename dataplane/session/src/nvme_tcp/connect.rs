//! The Connect command (base clause 6.3), as far as the subsystem has a say in it.

use wire::nvme::fabrics::{CONTROLLER_ANY, InvalidParameter};
use wire::nvme::{Completion, StatusCode};

use super::controller::Controller;
use super::setup::Attach;
use super::subsystem::{Seat, Subsystem, SubsystemLimits};

impl Subsystem {
    /// Gives a connection its place, or says what its host is told instead.
    pub(super) fn seat(&mut self, attach: &Attach, now_ns: u64) -> Result<Seat, Completion> {
        let invalid = |parameter: InvalidParameter| Err(parameter.completion(attach.command));
        if !self.hosts.allow(attach.host()) {
            let status = StatusCode::CONNECT_INVALID_HOST;
            return Err(Completion { status, ..InvalidParameter::HOST.completion(attach.command) });
        }
        // "If the SQSIZE value is 0h or larger than MQES": a queue of one place can hold no command.
        if !(2..=u32::from(self.limits.entries_max)).contains(&attach.connect.entries) {
            return invalid(InvalidParameter::ENTRIES);
        }
        if attach.connect.queue == 0 { self.admit(attach, now_ns) } else { self.add_queue(attach) }
    }

    /// A new controller. "If the NVM subsystem supports the dynamic controller model, then the Controller ID
    /// shall be FFFFh".
    fn admit(&mut self, attach: &Attach, now_ns: u64) -> Result<Seat, Completion> {
        if attach.controller != CONTROLLER_ANY {
            return Err(InvalidParameter::CONTROLLER.completion(attach.command));
        }
        let SubsystemLimits { controller_first, controllers_max, .. } = self.limits;
        let count = u32::from(controllers_max);
        // INVARIANT: a number is below what the limits were cut to.
        let number = |ahead| controller_first + ((u32::from(self.controller_next) + ahead) % count) as u16;
        let is_free = |id: &u16| self.controllers.iter().all(|one| one.id != *id);
        let Some(id) = (0..count).map(number).find(is_free) else {
            let status = StatusCode::CONTROLLER_BUSY;
            return Err(Completion { command: attach.command, status, ..Completion::default() });
        };
        self.started_ns.get_or_insert(now_ns);
        self.controller_next = id - controller_first + 1;
        let generation = self.controllers.iter().map(|one| one.generation).max().unwrap_or(0).max(now_ns) + 1;
        self.controllers.push(Controller::new(id, generation, attach, self.limits, now_ns));
        Ok(Seat { controller: id, generation, queue: 0 })
    }

    /// An I/O queue of a controller that is there, asked for by the host that made it.
    fn add_queue(&mut self, attach: &Attach) -> Result<Seat, Completion> {
        let queue = attach.connect.queue;
        let is_discovery = self.is_discovery();
        let Some(controller) = self.controllers.iter_mut().find(|one| one.id == attach.controller) else {
            return Err(InvalidParameter::CONTROLLER.completion(attach.command));
        };
        if !controller.is_of(attach) {
            return Err(InvalidParameter::HOST.completion(attach.command));
        }
        if is_discovery || queue > controller.queues_granted() {
            return Err(InvalidParameter::QUEUE.completion(attach.command));
        }
        // "If the controller is not enabled", or the queue "is already created": not its turn.
        if !controller.is_ready() || !controller.join(queue) {
            let (status, do_not_retry) = (StatusCode::COMMAND_SEQUENCE_ERROR, true);
            return Err(Completion {
                command: attach.command,
                status,
                do_not_retry,
                ..Completion::default()
            });
        }
        Ok(Seat { controller: controller.id, generation: controller.generation, queue })
    }
}
