//! NVMe/TCP: units, commands and completions, and the machines of the target under any host.

use session::nvme_tcp::{Next, Setup};
use wire::nvme::fabrics::{CONNECT_DATA_BYTES, ConnectData, Fabrics};
use wire::nvme::{Command, Completion, Sgl};
use wire::nvme_tcp::{Agreed, Alignment, Common, Pdu, Termination, digest};

#[path = "../../dataplane/session/tests/nvme_common/mod.rs"]
mod host;

use host::{ADMIN, Reply, Rig, Sqe};

/// A unit under whatever was agreed: refused with what the peer is told, or laid out inside its length and
/// written again as it was read.
pub fn nvme_tcp(bytes: &[u8]) {
    let [choice, bytes @ ..] = bytes else { return };
    let alignment = Alignment::new(choice >> 3).expect("up to 31");
    let agreed = Agreed { header_digest: choice & 1 != 0, data_digest: choice & 2 != 0, alignment };
    let Some(first) = bytes.first_chunk() else { return };
    let common = Common::parse(first);
    assert_eq!(common.octets(), *first);
    let layout = match common.layout(common.kind.direction(), agreed, 1 << 20) {
        Ok(layout) => layout,
        Err(fatal) => {
            assert!(fatal.information < 8, "a field of the common header");
            let (octets, len) = Termination { fatal, header: bytes }
                .octets(wire::nvme_tcp::Direction::ControllerToHost)
                .expect("whatever the header is");
            assert!(len <= octets.len());
            return;
        }
    };
    assert_eq!(layout.pdu_bytes(), u64::from(common.pdu_bytes));
    assert!(layout.data_at >= layout.header_bytes && layout.data_at <= 255);
    let Some(header) = bytes.get(..layout.header_bytes) else {
        assert!(layout.check_header_digest(bytes).is_err() || !layout.header_digest);
        return;
    };
    let mut whole = header.to_vec();
    whole.extend(digest(header).to_le_bytes());
    assert_eq!(layout.check_header_digest(&whole), Ok(()));
    let Ok(pdu) = Pdu::parse(&layout, header) else { return };
    // Data may begin later than it must, and reserved bits may be set; what is said is the same.
    let Ok(head) = pdu.head(layout.data_bytes, agreed) else { return };
    let again = Common::parse(head.octets().first_chunk().expect("a header"));
    let layout = again.layout(again.kind.direction(), agreed, 1 << 20).expect("written by ourselves");
    assert_eq!(layout.check_header_digest(head.octets()), Ok(()));
    assert_eq!(Pdu::parse(&layout, head.octets()), Ok(pdu));
    if let Pdu::Command(command) = pdu {
        nvme_command(&command);
    }
}

fn nvme_command(command: &Command) {
    if let Ok(sgl) = Sgl::parse(&command.sgl) {
        assert_eq!(Sgl::parse(&sgl.octets()), Ok(sgl));
        if let Ok(fabrics) = Fabrics::parse(command) {
            let again = fabrics.command(command.id, sgl).expect("it was read from one");
            assert_eq!(Fabrics::parse(&again), Ok(fabrics));
        }
    }
}

/// Commands, completions and the data of a connect command.
pub fn nvme(bytes: &[u8]) {
    if let Some(octets) = bytes.first_chunk() {
        let command = Command::parse(octets);
        assert_eq!(command.octets(), *octets);
        nvme_command(&command);
    }
    if let Some(octets) = bytes.first_chunk() {
        assert_eq!(Completion::parse(octets).octets(), *octets);
    }
    let mut data = [0; CONNECT_DATA_BYTES];
    let len = bytes.len().min(data.len());
    data[..len].copy_from_slice(&bytes[..len]);
    if let Ok(connect) = ConnectData::parse(&data) {
        let octets = connect.octets().expect("it was read from some");
        assert_eq!(ConnectData::parse(&octets), Ok(connect));
    }
}

/// Any host's bytes up to Connect, cut in two at any place: the same answers.
pub fn nvme_setup(bytes: &[u8]) {
    let [choice, cut, bytes @ ..] = bytes else { return };
    let agreed = agreed(*choice);
    // Chance alone seldom makes a first unit, or a command that is close to Connect.
    let mut said = if choice & 4 == 0 { host::hello(agreed) } else { Vec::new() };
    if choice & 8 == 0 {
        let mut connect = agreed.capsule(ADMIN.command(), &ADMIN.data());
        for pair in bytes.chunks_exact(2) {
            let at = usize::from(pair[0]) * connect.len() / 256;
            connect[at] = pair[1];
        }
        said.extend(connect);
    } else {
        said.extend_from_slice(bytes);
    }
    let talk = |pieces: &[&[u8]]| {
        let (mut setup, mut answers, mut left) = (Setup::new(), Vec::new(), Vec::new());
        let mut outcome = Ok(());
        for piece in pieces {
            left.extend_from_slice(piece);
            if outcome.is_ok() && setup.next() == Next::Read {
                match setup.process_bytes(&left) {
                    Ok(taken) => drop(left.drain(..taken)),
                    Err(error) => outcome = Err(error),
                }
            }
            answers.extend_from_slice(setup.dispatch_bytes());
            setup.sent(setup.dispatch_bytes().len());
        }
        let attached = setup.attach().map(|attach| attach.host().to_owned());
        let unread = if outcome.is_ok() { left.len() } else { 0 };
        (answers, outcome, attached, setup.next(), unread)
    };
    let (head, tail) = said.split_at((usize::from(*cut) << 3).min(said.len()));
    assert_eq!(talk(&[&said]), talk(&[head, tail]));
}

fn agreed(choice: u8) -> host::Agreed {
    host::Agreed { header_digest: choice & 1 != 0, data_digest: choice & 2 != 0, alignment: 0 }
}

/// Any sequence of commands, payload, credits, answers in any order and partial sends, on both queues: nothing
/// panics, what is said is whole units, no command is answered twice, and every buffer comes home.
///
/// Six bytes make one step: four shape a command close to what is sound, two say what else happens.
pub fn nvme_session(bytes: &[u8]) {
    let [choice, steps @ ..] = bytes else { return };
    let agreed = agreed(*choice);
    let mut rig = Rig::with(Default::default(), Default::default(), choice & 4 != 0, 8);
    let (mut admin, mut io) = rig.both(agreed, (choice & 8) >> 1);
    let (mut waiting, mut open) = (Vec::new(), Vec::new());
    for step in steps.chunks_exact(6) {
        let on_admin = step[5] & 1 != 0;
        let (command, payload) = command(step);
        let conn = if on_admin { &mut admin } else { &mut io };
        rig.sink.credits = usize::from(step[5] >> 5);
        rig.image.fault = (step[5] & 4 != 0).then_some((block::Lba(step[2].into()), block::Status::NoSpace));
        if on_admin {
            // Admin commands come and go at once; the I/O queue goes on later.
            let capsule = agreed.capsule(command, &payload);
            let ios = std::mem::take(&mut rig.sink.ios);
            conn.queue.process_bytes(&capsule, &mut rig.pool, 1);
            rig.step(conn);
            assert!(rig.sink.ios.is_empty(), "no I/O of an admin queue");
            rig.sink.ios = ios;
            while rig.send(conn) {}
            drop(conn.replies());
            continue;
        }
        waiting.extend(agreed.capsule(command, &payload));
        if let (true, count) = (step[5] & 2 != 0, rig.sink.ios.len())
            && count > 0
        {
            let done = rig.sink.ios.swap_remove(usize::from(step[4]) % count);
            rig.answer(conn, done);
        }
        let taken = conn.queue.process_bytes(&waiting, &mut rig.pool, 1);
        waiting.drain(..taken);
        rig.step(conn);
        conn.piece = usize::from(step[4]) << 6 | 1;
        rig.send(conn);
        for reply in conn.replies() {
            if let Reply::Transfer { id, tag, length, .. } = reply {
                open.push((id, tag, length));
            }
        }
        if let (true, Some((id, tag, length))) = (step[5] & 8 != 0, open.pop()) {
            // Of a transfer, all, or what no host should send.
            let data = vec![step[3]; length as usize];
            waiting.extend(agreed.data(id, tag, u32::from(step[5] & 16 != 0) * 4, &data, true));
        }
    }
    assert!(rig.pool.slab().regions() as usize * (1 << 20) >= io.queue.held_bytes());
    rig.finish(vec![admin, io]);
}

/// A command, and what comes along with it.
fn command(step: &[u8]) -> (Sqe, Vec<u8>) {
    let [opcode, id, at, length, ..] = *step else { return (host::flush(0), Vec::new()) };
    let blocks = u32::from(length & 15) + 1;
    let id = u16::from(id & 7);
    let lba = u64::from(at) << 6;
    match opcode % 12 {
        0 | 1 => (host::read(id, lba, blocks), Vec::new()),
        2 | 3 => (host::write(id, lba, blocks, true), vec![at; blocks as usize * 512]),
        4 | 5 => (host::write(id, lba, u32::from(length) * 8 + 1, false), Vec::new()),
        6 => (host::flush(id), Vec::new()),
        7 => {
            let payload: Vec<u8> = (0..blocks)
                .flat_map(|i| [0, 0, 0, 0, length, 0, 0, 0, at, i as u8, 0, 0, 0, 0, 0, 0])
                .collect();
            let sgl = host::Sgl::Capsule(payload.len() as u32);
            (Sqe::new(9, id, 1, sgl).dword(10, blocks - 1).dword(11, 4), payload)
        }
        8 => (Sqe::new(5, id, 1, host::Sgl::Capsule(512)).range(lba, 1), vec![at; 512]),
        9 => (
            Sqe::new(8, id, 1, host::Sgl::Host(0))
                .range(lba, blocks)
                .dword(12, (blocks - 1) | u32::from(at) << 24),
            Vec::new(),
        ),
        10 => (host::log_page(id, at.into(), u32::from(length) * 4, blocks * 64), Vec::new()),
        _ => (Sqe::new(at, id, length.into(), host::Sgl::Host(0)).dword(10, length.into()), Vec::new()),
    }
}
