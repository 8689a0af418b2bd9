//! For guests of tests: hands new connections to an NBD device of the running kernel, whose old ones died.
//!
//! The kernel's client keeps requests for a while when all its connections are dead
//! (`NBD_ATTR_DEAD_CONN_TIMEOUT`), but cannot connect by itself: a program must shake hands with the server and
//! hand the sockets over (`NBD_CMD_RECONFIGURE`, include/uapi/linux/nbd-netlink.h). nbd-client 3.24 has
//! neither; its `-persist` fails all requests in between. Later ones (3.27) do what is done here.
//!
//! `nbd-reattach INDEX SECONDS` sets how long requests are kept; `nbd-reattach INDEX SECONDS EXPORT ADDRESS COUNT`
//! also connects `COUNT` times and hands these connections over.

#![forbid(unsafe_code)]

use std::io::{self, Error, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use socket2::{Domain, Protocol, Socket, Type};
use wire::nbd::handshake::{ClientFlags, ExportNameReply, Greeting, OptionCode, OptionHeader};

/// `AF_NETLINK`, `NETLINK_GENERIC` (linux/netlink.h).
const NETLINK: i32 = 16;
const GENERIC: i32 = 16;
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_ID`, `CTRL_ATTR_FAMILY_NAME` (linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// linux/nbd-netlink.h.
const RECONFIGURE: u8 = 3;
const INDEX: u16 = 1;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// `NLM_F_REQUEST | NLM_F_ACK`, `NLMSG_ERROR`, `NLA_F_NESTED`.
const FLAGS: u16 = 5;
const ERROR: u16 = 2;
const NESTED: u16 = 1 << 15;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        [index, seconds] => reattach(index, seconds, Vec::new()),
        [index, seconds, export, address, count] => {
            connect(export, address, count).and_then(|sockets| reattach(index, seconds, sockets))
        }
        _ => Err(Error::other("usage: nbd-reattach INDEX SECONDS [EXPORT ADDRESS COUNT]")),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-reattach: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| Error::other(format!("`{word}` is no number")))
}

/// Shakes hands as often as wanted.
fn connect(export: &str, address: &str, count: &str) -> io::Result<Vec<TcpStream>> {
    (0..number::<u32>(count)?)
        .map(|_| {
            let mut socket = TcpStream::connect(address)?;
            let mut greeting = [0; Greeting::BYTES];
            socket.read_exact(&mut greeting)?;
            Greeting::parse(&greeting).map_err(Error::other)?;
            let flags = ClientFlags(ClientFlags::FIXED_NEWSTYLE.0 | ClientFlags::NO_ZEROES.0);
            let header = OptionHeader { option: OptionCode::EXPORT_NAME, data_bytes: export.len() as u32 };
            socket.write_all(&[&flags.octets()[..], &header.octets(), export.as_bytes()].concat())?;
            let mut reply = [0; ExportNameReply::BYTES];
            socket.read_exact(&mut reply)?;
            Ok(socket)
        })
        .collect()
}

fn reattach(index: &str, seconds: &str, sockets: Vec<TcpStream>) -> io::Result<()> {
    let mut netlink = Socket::new(Domain::from(NETLINK), Type::RAW, Some(Protocol::from(GENERIC)))?;
    let answer = ask(&mut netlink, CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, b"nbd\0"))?;
    let family = find(answer.get(HEADER + GENERIC_HEADER..).unwrap_or(&[]), FAMILY_ID)
        .ok_or_else(|| Error::other("the kernel has no nbd by netlink"))?;
    let items: Vec<u8> = sockets
        .iter()
        .flat_map(|socket| {
            let fd = attribute(SOCK_FD, &socket.as_raw_fd().to_ne_bytes());
            attribute(SOCK_ITEM | NESTED, &fd)
        })
        .collect();
    let mut body = attribute(INDEX, &number::<u32>(index)?.to_ne_bytes());
    body.extend(attribute(DEAD_CONN_TIMEOUT, &number::<u64>(seconds)?.to_ne_bytes()));
    if !sockets.is_empty() {
        body.extend(attribute(SOCKETS | NESTED, &items));
    }
    ask(&mut netlink, family, RECONFIGURE, &body).map(drop)
}

/// An attribute: length, type, bytes, filled up to 4 bytes.
fn attribute(kind: u16, bytes: &[u8]) -> Vec<u8> {
    let mut out = ((bytes.len() + 4) as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The 16-bit value of an attribute.
fn find(mut attributes: &[u8], kind: u16) -> Option<u16> {
    while let [a, b, c, d, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        if u16::from_ne_bytes([*c, *d]) == kind {
            return Some(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

/// Sends a command and returns the kernel's first answer, unless it is an error.
fn ask(netlink: &mut Socket, family: u16, command: u8, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADER + GENERIC_HEADER + body.len();
    let mut message = (length as u32).to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    // Sequence number and port are 0; the version of both families' commands is 1.
    message.extend([0, 0, 0, 0, 0, 0, 0, 0, command, 1, 0, 0]);
    message.extend(body);
    netlink.write_all(&message)?;
    let mut answer = vec![0; 4096];
    let count = netlink.read(&mut answer)?;
    answer.truncate(count);
    let kind = answer.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]]));
    match (kind, answer.get(HEADER..HEADER + 4)) {
        (Some(ERROR), Some(&[a, b, c, d])) => match i32::from_ne_bytes([a, b, c, d]) {
            0 => Ok(answer),
            error => Err(Error::from_raw_os_error(-error)),
        },
        (Some(_), Some(_)) => Ok(answer),
        _ => Err(Error::other("the kernel's answer is cut")),
    }
}
