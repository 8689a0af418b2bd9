//! A controller with its queues: how it is set up, and what its admin queue is for afterwards.
//!
//! Clauses are those of the NVM Express Base Specification 2.0.

use std::time::{Duration, Instant};

use wire::nvme::data::{AnaState, Cns, Events, Feature, LogPage};
use wire::nvme::fabrics::{CONTROLLER_ANY, Connect, ConnectData, ConnectFlags, Fabrics, Property};
use wire::nvme::{AdminOpcode, Command, Sgl, StatusCode};
use wire::nvme_tcp::DigestFlags;

use super::Plan;
use super::connection::Connection;
use super::pages::{ControllerPage, NamespacePage, ana_log_bytes, ana_state, rank};
use super::queue::Payload;

/// Slots of the admin queue.
const LOG: u32 = 0;
const KEEP_ALIVE: u32 = 1;
const EVENT: u32 = 2;
const ADMIN_SLOTS: u32 = 3;
/// Places that every host asks an admin queue to have.
const ADMIN_ENTRIES: u32 = 32;
/// "Asynchronous Event Type": a notice; "Asynchronous Event Information": of a change of ANA states.
const NOTICE: u64 = 0b010;
const ANA_NOTICE: u64 = 0x03;
/// CC: entries of 64 and 16 bytes, enabled.
const ENABLE: u64 = 6 << 16 | 4 << 20 | 1;
/// Time between two looks at a state in which there is no I/O.
const LOOK_NS: u64 = 1_000_000_000;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Controller {
    admin: Connection,
    /// I/O queues.
    pub queues: Vec<Connection>,
    /// The volume.
    pub namespace: NamespacePage,
    /// How well I/O goes this way.
    pub state: AnaState,
    /// Groups in the ANA log, if there is one.
    ana_groups: Option<u32>,
    /// It has to be read again.
    is_stale: bool,
    looked_ns: u64,
    /// Half of KATO; 0 without.
    keep_alive_ns: u64,
    heard_ns: u64,
}

impl Controller {
    /// Sets everything up; blocks meanwhile.
    pub fn connect(address: &str, plan: &Plan) -> Result<Controller, String> {
        let digests = DigestFlags::NONE
            .with_if(plan.options.header_digest, DigestFlags::HDGST_ENABLE)
            .with_if(plan.options.data_digest, DigestFlags::DDGST_ENABLE);
        let mut admin = Connection::open(address, ADMIN_SLOTS, digests, true)?;
        let id = attach(&mut admin, plan, 0, ADMIN_ENTRIES, CONTROLLER_ANY)?;
        let cap = enable(&mut admin)?;
        // CAP: MPSMIN in bits 51:48.
        let page_bytes = 4096 << (cap >> 48 & 0xf);
        let page = identify(&mut admin, Cns::CONTROLLER, 0)?;
        let page = ControllerPage::parse(&page, page_bytes).ok_or("Identify Controller: too short")?;
        grant_queues(&mut admin, plan.connections)?;
        let namespace = plan.options.namespace;
        let volume = identify(&mut admin, Cns::NAMESPACE, namespace)?;
        let volume = NamespacePage::parse(&volume)
            .ok_or_else(|| format!("namespace {namespace} is not there, or of a form that is not known"))?;
        fits(plan, cap, &page, &volume)?;
        let mut queues = Vec::new();
        for number in 1..=plan.connections {
            let mut queue = Connection::open(address, plan.depth, digests, plan.keep)?;
            attach(&mut queue, plan, number as u16, plan.depth + 1, id)?;
            queue.queue.set_capsule_bytes(page.capsule_bytes);
            queue.stop_blocking()?;
            queues.push(queue);
        }
        let mut controller = Controller {
            admin,
            queues,
            namespace: volume,
            state: AnaState::Optimized,
            ana_groups: page.ana_groups,
            is_stale: false,
            looked_ns: 0,
            keep_alive_ns: u64::from(plan.options.keep_alive_ms) * 1_000_000 / 2,
            heard_ns: 0,
        };
        controller.watch(page.tells_of_ana)?;
        controller.admin.stop_blocking()?;
        Ok(controller)
    }

    /// Reads the ANA state, and asks to be told when it changes.
    fn watch(&mut self, tells: bool) -> Result<(), String> {
        let Some(groups) = self.ana_groups else { return Ok(()) };
        let bytes = ana_log_bytes(groups);
        let (_, log) = self.admin.call("the ANA log", ana_log(bytes), Payload::ToHost(bytes))?;
        self.state = self.state_in(&log);
        if tells {
            let set = feature(Feature::ASYNC_EVENTS, Events::ANA.0);
            self.admin.call("Asynchronous Event Configuration", set, Payload::None)?;
            self.ask_for_events();
        }
        Ok(())
    }

    fn state_in(&self, log: &[u8]) -> AnaState {
        ana_state(log, self.namespace.ana_group).unwrap_or(AnaState::Inaccessible)
    }

    fn ask_for_events(&mut self) {
        let command = Command { opcode: AdminOpcode::ASYNC_EVENT_REQUEST.0, ..Command::default() };
        self.admin.queue.ask(EVENT, command, Payload::None);
    }

    /// It is in use from now on.
    pub fn begin(&mut self, now_ns: u64) {
        (self.heard_ns, self.looked_ns) = (now_ns, now_ns);
    }

    /// An answer said that its ANA state is another one, or may be.
    pub fn doubt(&mut self, status: StatusCode) {
        self.state = match status {
            StatusCode::ANA_INACCESSIBLE => AnaState::Inaccessible,
            StatusCode::ANA_PERSISTENT_LOSS => AnaState::PersistentLoss,
            StatusCode::ANA_TRANSITION => AnaState::Change,
            _ => self.state,
        };
        self.is_stale = self.ana_groups.is_some();
    }

    /// Keeps the controller alive, and hears of changes. An error is why it is lost.
    pub fn step(&mut self, now_ns: u64, scratch: &mut [u8]) -> Result<(), String> {
        if self.keep_alive_ns > 0 && now_ns >= self.heard_ns + self.keep_alive_ns {
            if self.admin.queue.is_under_way(KEEP_ALIVE) {
                return Err(format!("no answer to Keep Alive for {} ms", self.keep_alive_ns / 1_000_000));
            }
            let command = Command { opcode: AdminOpcode::KEEP_ALIVE.0, ..Command::default() };
            self.admin.queue.ask(KEEP_ALIVE, command, Payload::None);
            self.heard_ns = now_ns;
        }
        self.is_stale |= rank(self.state).is_none() && now_ns >= self.looked_ns + LOOK_NS;
        if let Some(groups) = self.ana_groups
            && self.is_stale
            && !self.admin.queue.is_under_way(LOG)
        {
            (self.is_stale, self.looked_ns) = (false, now_ns);
            let bytes = ana_log_bytes(groups);
            self.admin.queue.ask(LOG, ana_log(bytes), Payload::ToHost(bytes));
        }
        self.admin.send()?;
        let mut answers = Vec::new();
        self.admin.receive(scratch, |_| &[], &mut answers)?;
        for answer in answers {
            match (answer.slot, answer.completion.status) {
                (LOG, StatusCode::SUCCESS) if !self.is_stale => self.state = self.state_in(&answer.payload),
                (KEEP_ALIVE, StatusCode::SUCCESS) | (LOG, _) => {}
                (EVENT, StatusCode::SUCCESS) => {
                    let event = answer.completion.result;
                    self.is_stale |= event & 0b111 == NOTICE && event >> 8 & 0xff == ANA_NOTICE;
                    self.ask_for_events();
                }
                // Without events, the log is still read whenever an answer gives cause.
                (EVENT, _) => {}
                (_, status) => return Err(format!("Keep Alive was refused: {status}")),
            }
        }
        Ok(())
    }
}

/// Makes a connection a queue of `controller`; returns the controller's number.
fn attach(
    connection: &mut Connection,
    plan: &Plan,
    queue: u16,
    entries: u32,
    controller: u16,
) -> Result<u16, String> {
    let options = &plan.options;
    let data = ConnectData {
        host_id: options.host_id(),
        controller,
        subsystem: &plan.subsystem,
        host: &options.host_nqn,
    };
    let data = data.octets().map_err(|_| "an NQN has 1 to 223 bytes".to_owned())?;
    let connect = Fabrics::Connect(Connect {
        queue,
        entries,
        flags: ConnectFlags::NONE.with_if(!options.flow_control, ConnectFlags::DISABLE_FLOW_CONTROL),
        keep_alive_ms: if queue == 0 { options.keep_alive_ms } else { 0 },
    });
    let what = format!("Connect of queue {queue}");
    let (result, _) = connection.call(&what, fabrics(connect)?, Payload::FromHost(&data))?;
    Ok(result as u16)
}

/// Clause 3.5.1: enables the controller and waits until it is ready; returns CAP.
fn enable(admin: &mut Connection) -> Result<u64, String> {
    let mut get = |property, is_long| {
        let command = fabrics(Fabrics::PropertyGet { property, is_long })?;
        Ok::<u64, String>(admin.call("Property Get", command, Payload::None)?.0)
    };
    let cap = get(Property::CAP, true)?;
    let set = fabrics(Fabrics::PropertySet { property: Property::CC, is_long: false, value: ENABLE })?;
    admin.call("Property Set", set, Payload::None)?;
    // TO: "the worst case time [...] in 500 millisecond units".
    let until = Instant::now() + Duration::from_millis(500) * ((cap >> 24 & 0xff) as u32).max(1);
    loop {
        let command = fabrics(Fabrics::PropertyGet { property: Property::CSTS, is_long: false })?;
        match admin.call("Property Get", command, Payload::None)?.0 & 0b11 {
            0b01 => return Ok(cap),
            0b00 if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            status => return Err(format!("the controller does not become ready: CSTS {status:#x}")),
        }
    }
}

fn fabrics(what: Fabrics) -> Result<Command, String> {
    // The queue fills the identifier and the descriptor in.
    let command = what.command(0, Sgl::HostBuffer { length_bytes: 0 });
    command.map_err(|_| "a queue has 1 to 65536 places".to_owned())
}

fn identify(admin: &mut Connection, cns: Cns, namespace: u32) -> Result<Vec<u8>, String> {
    let mut command = Command { opcode: AdminOpcode::IDENTIFY.0, namespace, ..Command::default() };
    command.dwords_10_15[0] = cns.0.into();
    let bytes = wire::nvme::data::IDENTIFY_BYTES as u32;
    Ok(admin.call("Identify", command, Payload::ToHost(bytes))?.1)
}

fn feature(feature: Feature, value: u32) -> Command {
    let mut command = Command { opcode: AdminOpcode::SET_FEATURES.0, ..Command::default() };
    (command.dwords_10_15[0], command.dwords_10_15[1]) = (feature.0.into(), value);
    command
}

/// The ANA log without the namespaces of its groups (RGO, bit 0 of LSP).
fn ana_log(bytes: u32) -> Command {
    let mut command = Command { opcode: AdminOpcode::GET_LOG_PAGE.0, ..Command::default() };
    command.dwords_10_15[0] = u32::from(LogPage::ANA.0) | 1 << 8 | (bytes / 4 - 1) << 16;
    command
}

/// Clause 5.27.1.5: asks for as many I/O queues as there are to be.
fn grant_queues(admin: &mut Connection, queues: u32) -> Result<(), String> {
    let wanted = queues - 1;
    let set = feature(Feature::QUEUES, wanted << 16 | wanted);
    let (granted, _) = admin.call("Number of Queues", set, Payload::None)?;
    let granted = (granted as u32 & 0xffff).min(granted as u32 >> 16) + 1;
    if granted < queues {
        return Err(format!("the controller grants {granted} I/O queues; use no more connections"));
    }
    Ok(())
}

/// What is to be done lies within what the controller can do.
fn fits(plan: &Plan, cap: u64, page: &ControllerPage, volume: &NamespacePage) -> Result<(), String> {
    // CAP: MQES in bits 15:0, less one; one place of a queue stays free.
    let depth_max = (cap & 0xffff) as u32;
    if plan.depth > depth_max {
        return Err(format!("the controller's queues take {depth_max} commands; use no greater depth"));
    }
    let block_bytes = 1 << volume.block_bytes_log2;
    if !plan.block_bytes.is_multiple_of(block_bytes) {
        return Err(format!("the volume's blocks have {block_bytes} bytes; requests are multiples of it"));
    }
    match page.transfer_bytes_max {
        Some(most) if u64::from(plan.block_bytes) > most => {
            Err(format!("the controller moves {most} bytes with a command; use no longer requests"))
        }
        _ => Ok(()),
    }
}
