//! Clients that mean no good, many at once, while another one works.

mod hosts;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tests::gateway::folder;
use wire::nbd::handshake::{OptionCode, OptionHeader};
use wire::nbd::transmission::{Command, CommandFlags, Request};

use crate::client::{Client, Socket, greeted};
use crate::place::{Place, file, memory};

const MIB: usize = 1 << 20;
/// Of each kind that costs next to nothing.
const CROWD: usize = 200;
/// Of each kind that the daemon holds payload for.
const GREEDY: usize = 3;
/// Bytes that the good client has under test.
const BYTES: usize = 1 << 20;

/// Memory of a process that is or was in use, in bytes.
fn memory_peak(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has it");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("a number") << 10
}

/// Writes and reads back, differently each time.
fn works(client: &mut Client, round: u8) {
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at / 4096) as u8 ^ round).collect();
    client.write(0, &bytes).expect("the good client's write is answered");
    let mut back = vec![0; BYTES];
    client.read(0, &mut back).expect("the good client's read is answered");
    assert!(back == bytes, "round {round}: what was written is read");
}

/// Connects over either socket; a read that finds nothing for a minute fails.
fn connect(place: &Place, number: usize) -> Box<dyn Socket> {
    let patience = Some(Duration::from_secs(60));
    if number.is_multiple_of(2) {
        let socket = TcpStream::connect(("127.0.0.1", place.port)).expect("the daemon listens");
        socket.set_read_timeout(patience).expect("sockets have it");
        Box::new(socket)
    } else {
        let socket = UnixStream::connect(place.socket()).expect("the daemon listens");
        socket.set_read_timeout(patience).expect("sockets have it");
        Box::new(socket)
    }
}

/// The daemon closes it, with or without a word.
fn closed(socket: &mut dyn Socket) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        // Closed with unread bytes, TCP answers with a reset: as good as an end.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

fn request(command: Command, length_bytes: u32) -> [u8; Request::BYTES] {
    Request { flags: CommandFlags(0), command, cookie: 1, offset_bytes: 0, length_bytes }.octets()
}

#[test]
fn a_crowd_that_means_no_good_disturbs_nobody() {
    let at = folder("serve-hostile");
    let exports = [file("good", &at.join("good"), "64MiB", 4096), memory("bad", "64MiB", "")];
    let mut place = Place::with_memory("serve-hostile", "256MiB", &exports.each_ref().map(String::as_str));
    let pid = place.daemon().process.0.id();
    let mut good = Client::unix(&place.socket(), "good");
    works(&mut good, 0);
    let mut held: Vec<Box<dyn Socket>> = Vec::new();

    // They say nothing.
    held.extend((0..CROWD).map(|number| connect(&place, number)));
    works(&mut good, 1);
    // They say half of what they want.
    for number in 0..CROWD {
        let mut socket = connect(&place, number);
        greeted(&mut *socket).expect("greeted");
        let header = OptionHeader { option: OptionCode::EXPORT_NAME, data_bytes: 3 }.octets();
        socket.write_all(&header[..1 + number % 15]).expect("sent");
        held.push(socket);
    }
    works(&mut good, 2);
    // They talk nonsense, before and after they chose; the daemon closes them.
    for number in 0..CROWD {
        let mut socket = connect(&place, number);
        greeted(&mut *socket).expect("greeted");
        if number % 4 < 2 {
            let header = OptionHeader { option: OptionCode::EXPORT_NAME, data_bytes: 3 };
            socket.write_all(&[&header.octets()[..], b"bad"].concat()).expect("sent");
            socket.read_exact(&mut [0; 10]).expect("the export is there");
        }
        // It may have closed before the last byte is sent.
        let _ = socket.write_all(&[0xa5; 64]);
        closed(&mut *socket);
    }
    works(&mut good, 3);
    // They begin a message and never end it, or leave the answers unread: payload that the daemon holds.
    for number in 0..GREEDY {
        let mut socket = connect(&place, number);
        chosen(&mut *socket);
        let long = request(Command::WRITE, (32 * MIB) as u32);
        socket.write_all(&[&long[..], &[7; 5000]].concat()).expect("sent");
        held.push(socket);
        let mut socket = connect(&place, number);
        chosen(&mut *socket);
        socket.write_all(&request(Command::READ, MIB as u32).repeat(100)).expect("sent");
        held.push(socket);
    }
    for round in 4..8 {
        works(&mut good, round);
    }
    // One that half of a request came from, and one that is gone with all its requests under way.
    for number in 0..CROWD {
        let mut socket = connect(&place, number);
        chosen(&mut *socket);
        socket.write_all(&request(Command::READ, MIB as u32)[..1 + number % 27]).expect("sent");
        held.push(socket);
        let mut socket = connect(&place, number);
        chosen(&mut *socket);
        socket.write_all(&request(Command::READ, 4096).repeat(20)).expect("sent");
    }
    works(&mut good, 8);
    let peak = memory_peak(pid);
    println!("{} connections held, {} MiB of memory at most", held.len(), peak >> 20);
    // The payload's 256 MiB, the volume of 64 MiB, the packets' 50 MiB, and what the program itself takes.
    assert!(peak < 512 * MIB, "{peak} bytes of memory");
    place.end();
    drop(held);
    place.remove();
}

/// Chooses the export that nobody good uses.
fn chosen(socket: &mut dyn Socket) {
    greeted(socket).expect("greeted");
    let header = OptionHeader { option: OptionCode::EXPORT_NAME, data_bytes: 3 };
    socket.write_all(&[&header.octets()[..], b"bad"].concat()).expect("sent");
    socket.read_exact(&mut [0; 10]).expect("the export is there");
}
