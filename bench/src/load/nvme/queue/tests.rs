//! A controller made of bytes, and what the queue makes of what it says.

use wire::nvme::IoOpcode;
use wire::nvme_tcp::{Common, TERMINATION_BYTES_MAX};

use super::*;

const READ: Command = Command {
    opcode: IoOpcode::READ.0,
    flags: 0,
    id: 0,
    namespace: 1,
    dwords_2_3: [0; 2],
    metadata: 0,
    sgl: [0; 16],
    dwords_10_15: [0; 6],
};
const WRITE: Command = Command { opcode: IoOpcode::WRITE.0, ..READ };

/// A controller, as far as bytes go: what the queue sent, and what it is told.
struct Peer {
    queue: Queue,
    agreed: Agreed,
    answers: Vec<Answer>,
    payload: Vec<u8>,
}

impl Peer {
    fn new(digests: DigestFlags, data_bytes_max: u32) -> Peer {
        let mut queue = Queue::new(4, digests, true);
        assert_eq!(queue.dispatch_bytes().len(), 128, "ICReq");
        queue.sent(128);
        let agreed = Agreed {
            header_digest: digests.has(DigestFlags::HDGST_ENABLE),
            data_digest: digests.has(DigestFlags::DDGST_ENABLE),
            alignment: Alignment::WORD,
        };
        let hello = Pdu::IcResp(IcResp { alignment: Alignment::WORD, digests, data_bytes_max });
        let mut peer = Peer { queue, agreed: Agreed::NOTHING, answers: Vec::new(), payload: Vec::new() };
        peer.say(hello, &[]).expect("the first word");
        assert!(peer.queue.is_open());
        peer.agreed = agreed;
        peer
    }

    fn octets(&self, pdu: Pdu, data: &[u8]) -> Vec<u8> {
        let mut octets = pdu.head(data.len() as u32, self.agreed).expect("sound").octets().to_vec();
        octets.extend(data);
        if self.agreed.data_digest && !data.is_empty() {
            octets.extend(digest(data).to_le_bytes());
        }
        octets
    }

    fn say(&mut self, pdu: Pdu, data: &[u8]) -> Result<(), QueueError> {
        let octets = self.octets(pdu, data);
        self.hear(&octets)
    }

    /// One byte after the other, as TCP may deliver them.
    fn hear(&mut self, octets: &[u8]) -> Result<(), QueueError> {
        let payload = self.payload.clone();
        octets.chunks(1).try_for_each(|one| self.queue.process_bytes(one, |_| &payload, &mut self.answers))
    }

    /// The unit that the queue sent next, and its data.
    fn sent(&mut self) -> (Pdu, Vec<u8>) {
        let octets = self.queue.dispatch_bytes();
        let common = Common::parse(octets.first_chunk().expect("a unit"));
        let layout = common.layout(Direction::HostToController, self.agreed, u32::MAX).expect("sound");
        layout.check_header_digest(octets).expect("sound");
        let pdu = Pdu::parse(&layout, octets).expect("sound");
        let data = octets[layout.data_at..layout.data_at + layout.data_bytes as usize].to_vec();
        if layout.data_digest {
            let at = layout.data_at + data.len();
            assert_eq!(octets[at..at + 4], digest(&data).to_le_bytes());
        }
        self.queue.sent(layout.pdu_bytes() as usize);
        (pdu, data)
    }

    fn command(&mut self) -> (Command, Vec<u8>) {
        match self.sent() {
            (Pdu::Command(command), data) => (command, data),
            other => panic!("no command: {other:?}"),
        }
    }

    fn data(&mut self, command: u16, at: u32, data: &[u8], is_success: bool) -> Result<(), QueueError> {
        let length_bytes = data.len() as u32;
        let head = Data { command, tag: 0, offset_bytes: at, length_bytes, is_last: is_success, is_success };
        self.say(Pdu::Data(Direction::ControllerToHost, head), data)
    }

    fn complete(&mut self, command: u16, status: StatusCode) -> Result<(), QueueError> {
        self.say(Pdu::Completion(Completion { command, status, ..Completion::default() }), &[])
    }

    fn answer(&mut self) -> (u32, StatusCode, Vec<u8>) {
        let Answer { slot, completion, payload } = self.answers.remove(0);
        (slot, completion.status, payload)
    }
}

fn every_agreement() -> impl Iterator<Item = Peer> {
    (0..4).map(|bits| Peer::new(DigestFlags(bits), 4096))
}

#[test]
fn a_read_ends_with_its_data_or_with_a_completion_behind_it() {
    for mut peer in every_agreement() {
        for with_completion in [false, true] {
            peer.queue.ask(3, READ, Payload::ToHost(1024));
            let (command, _) = peer.command();
            assert_eq!(Sgl::parse(&command.sgl), Ok(Sgl::HostBuffer { length_bytes: 1024 }));
            peer.data(command.id, 0, &[7; 512], false).expect("half of it");
            peer.data(command.id, 512, &[8; 512], !with_completion).expect("the rest");
            if with_completion {
                assert!(peer.answers.is_empty(), "the completion is still to come");
                peer.complete(command.id, StatusCode::SUCCESS).expect("the end");
            }
            assert_eq!(peer.answer(), (3, StatusCode::SUCCESS, [[7; 512], [8; 512]].concat()));
            assert_eq!(peer.queue.under_way(), 0);
        }
    }
}

#[test]
fn a_write_brings_its_data_along_or_sends_what_is_asked_for_in_pieces() {
    for mut peer in every_agreement() {
        peer.payload = (0..12_288_u32).map(|at| at as u8).collect();
        let payload = peer.payload.clone();
        peer.queue.ask(0, WRITE, Payload::FromHost(&payload[..8192]));
        let (command, data) = peer.command();
        assert_eq!(Sgl::parse(&command.sgl), Ok(Sgl::InCapsule { offset_bytes: 0, length_bytes: 8192 }));
        assert_eq!(data, payload[..8192]);
        peer.complete(command.id, StatusCode::CAPACITY_EXCEEDED).expect("an answer");
        assert_eq!(peer.answer(), (0, StatusCode::CAPACITY_EXCEEDED, Vec::new()));

        peer.queue.ask(1, WRITE, Payload::FromHost(&payload));
        let (command, data) = peer.command();
        assert_eq!((data.len(), command.sgl[15]), (0, 0x5a));
        for (tag, offset_bytes, length_bytes) in [(5, 0, 6144), (6, 6144, 6144)] {
            let id = command.id;
            peer.say(Pdu::Transfer(Transfer { command: id, tag, offset_bytes, length_bytes }), &[])
                .expect("it may ask in parts");
            // The controller takes 4,096 bytes at a time.
            for (at, bytes, is_last) in [(offset_bytes, 4096, false), (offset_bytes + 4096, 2048, true)] {
                let (pdu, data) = peer.sent();
                let wanted = Data {
                    command: id,
                    tag,
                    offset_bytes: at,
                    length_bytes: bytes,
                    is_last,
                    is_success: false,
                };
                assert_eq!(pdu, Pdu::Data(Direction::HostToController, wanted));
                assert_eq!(data, payload[at as usize..][..bytes as usize]);
            }
        }
        peer.complete(command.id, StatusCode::SUCCESS).expect("an answer");
        assert_eq!(peer.answer().1, StatusCode::SUCCESS);
    }
}

#[test]
fn what_is_damaged_or_missing_is_no_success() {
    let mut peer = Peer::new(DigestFlags::DDGST_ENABLE, 4096);
    peer.queue.ask(0, READ, Payload::ToHost(512));
    let (command, _) = peer.command();
    let head = Data {
        command: command.id,
        tag: 0,
        offset_bytes: 0,
        length_bytes: 512,
        is_last: true,
        is_success: true,
    };
    let mut octets = peer.octets(Pdu::Data(Direction::ControllerToHost, head), &[1; 512]);
    octets[100] ^= 1;
    peer.hear(&octets).expect("only the command fails");
    assert_eq!(peer.answer().1, StatusCode::TRANSIENT_TRANSPORT_ERROR);

    peer.queue.ask(0, READ, Payload::ToHost(1024));
    let (command, _) = peer.command();
    peer.data(command.id, 0, &[1; 512], false).expect("half of it");
    peer.complete(command.id, StatusCode::SUCCESS).expect("an answer");
    assert_eq!(peer.answer().1, StatusCode::DATA_TRANSFER_ERROR);
}

#[test]
fn a_controller_that_breaks_the_transport_is_told_how() {
    let broken = |what: &dyn Fn(&mut Peer, u16) -> Result<(), QueueError>, fatal: Fatal| {
        let mut peer = Peer::new(DigestFlags::NONE, 4096);
        peer.queue.ask(0, READ, Payload::ToHost(512));
        let (command, _) = peer.command();
        assert_eq!(what(&mut peer, command.id), Err(QueueError::Fatal(fatal)));
        let said = peer.queue.dispatch_bytes();
        assert!((24..=TERMINATION_BYTES_MAX).contains(&said.len()) && said[0] == 2, "H2CTermReq: {said:?}");
    };
    let unknown = Fatal::field(8);
    broken(&|peer, id| peer.complete(id ^ 0x400, StatusCode::SUCCESS), unknown);
    broken(
        &|peer, id| {
            peer.complete(id, StatusCode::SUCCESS)?;
            peer.complete(id, StatusCode::SUCCESS)
        },
        unknown,
    );
    let out_of_range = Fatal::bare(FatalStatus::DATA_OUT_OF_RANGE);
    broken(&|peer, id| peer.data(id, 512, &[0; 512], true), out_of_range);
    let transfer = |command| Transfer { command, tag: 0, offset_bytes: 0, length_bytes: 512 };
    broken(&|peer, id| peer.say(Pdu::Transfer(transfer(id)), &[]), out_of_range);
    let again = IcResp { alignment: Alignment::WORD, digests: DigestFlags::NONE, data_bytes_max: 4096 };
    broken(&|peer, _| peer.say(Pdu::IcResp(again), &[]), Fatal::bare(FatalStatus::SEQUENCE));

    let mut peer = Peer::new(DigestFlags::NONE, 4096);
    let over = peer.say(Pdu::Termination(Direction::ControllerToHost, unknown), &[0; 8]);
    assert_eq!(over, Err(QueueError::Terminated(unknown)));
    assert!(peer.queue.dispatch_bytes().is_empty(), "nothing is left to say");

    let mut queue = Queue::new(1, DigestFlags::NONE, false);
    let pushy = IcResp { digests: DigestFlags::DDGST_ENABLE, ..again };
    let octets = Pdu::IcResp(pushy).head(0, Agreed::NOTHING).expect("sound");
    let refused = queue.process_bytes(octets.octets(), |_| &[], &mut Vec::new());
    assert_eq!(refused, Err(QueueError::Fatal(Fatal::field(11))), "it was not asked for digests");
}
