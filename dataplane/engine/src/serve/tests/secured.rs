//! Connections over TLS: the handshake is done in memory, then the bytes go over a socket pair like any others.

use std::io::ErrorKind;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

/// What follows the request of a long read.
const LONG: u32 = 1 << 20;

/// The client's end: a socket and what makes records of what is said.
struct Client {
    socket: UnixStream,
    machine: ClientConnection,
}

/// Both sides of a handshake that went well.
fn shaken() -> (ClientConnection, ServerConnection) {
    let signed = rcgen::generate_simple_self_signed(["tidegate".to_owned()]).unwrap();
    let certificate = signed.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone());
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = server.with_single_cert(vec![certificate], key).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("tidegate").unwrap();
    let mut client = ClientConnection::new(client.into(), name).unwrap();
    let mut server = ServerConnection::new(server.into()).unwrap();
    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut &wire[..]).unwrap();
        server.process_new_packets().unwrap();
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut &wire[..]).unwrap();
        client.process_new_packets().unwrap();
        wire.clear();
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    (client, server)
}

impl Bench {
    fn connect_secured(&mut self) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (client, server) = shaken();
        let stream = Stream::from(theirs).secured(server);
        let arrival = Arrival { stream, guest: guest(VolumeId(0)), rest: Vec::new() };
        self.server.connect(self.now_ns, arrival, &mut self.wait);
        Client { socket: ours, machine: client }
    }
}

impl Client {
    /// The records of some bytes.
    fn records(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.machine.set_buffer_limit(None);
        self.machine.writer().write_all(bytes).unwrap();
        let mut records = Vec::new();
        while self.machine.wants_write() {
            self.machine.write_tls(&mut records).unwrap();
        }
        records
    }

    fn say(&mut self, bytes: &[u8]) {
        let records = self.records(bytes);
        self.socket.write_all(&records).unwrap();
    }

    /// What has arrived, decrypted, and whether the other side has closed.
    fn heard(&mut self) -> (Vec<u8>, bool) {
        self.socket.set_nonblocking(true).unwrap();
        let mut heard = Vec::new();
        loop {
            match self.machine.read_tls(&mut self.socket) {
                Ok(0) => return (heard, true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (heard, false),
                Err(error) => panic!("{error}"),
            }
            let bytes = self.machine.process_new_packets().unwrap().plaintext_bytes_to_read();
            let before = heard.len();
            heard.resize(before + bytes, 0);
            self.machine.reader().read_exact(&mut heard[before..]).unwrap();
        }
    }

    /// Hears so many bytes while turns go by.
    fn hear(&mut self, bench: &mut Bench, bytes: usize) -> Vec<u8> {
        let mut heard = Vec::new();
        for _ in 0..100 * QUIET_TURNS {
            bench.turn_or_wait();
            let (more, closed) = self.heard();
            heard.extend(more);
            if closed || heard.len() >= bytes {
                break;
            }
        }
        assert_eq!(heard.len(), bytes);
        heard
    }
}

/// One over memory: what was written is there.
fn memory() -> Target {
    Target::memory(VolumeId(0), BlockSize::B4096, 1 << 12, false).unwrap().0
}

#[test]
fn what_was_written_over_tls_is_read_and_records_may_be_cut_anywhere() {
    let mut bench = Bench::new(64, memory(), Limits::unlimited());
    let mut client = bench.connect_secured();
    let payload: Vec<u8> = (0..LONG).map(|at| (at / 4096) as u8 ^ at as u8).collect();
    let records = client.records(&[&request(WRITE, 0, 1, 0, LONG)[..], &payload].concat());
    client.socket.set_nonblocking(true).unwrap();
    let mut said = 0;
    // Pieces of many lengths, so that records and their heads are cut at many places.
    for length in (0..).map(|number| 1 + number * 7919 % 30_011) {
        let end = (said + length).min(records.len());
        said += client.socket.write(&records[said..end]).unwrap_or(0);
        bench.turn();
        if said == records.len() {
            break;
        }
    }
    let answer = client.hear(&mut bench, 16);
    assert_eq!(answer[4..8], [0; 4]);
    client.say(&request(READ, 0, 2, 0, LONG));
    let answer = client.hear(&mut bench, 16 + LONG as usize);
    assert!(answer[16..] == payload);
    assert!(bench.sleeps());
    for byte in client.records(&request(READ, 0, 3, 0, 4096)) {
        client.socket.write_all(&[byte]).unwrap();
        bench.turn();
    }
    assert_eq!(client.hear(&mut bench, 16 + 4096)[16..], payload[..4096]);
    bench.server.stop(bench.now_ns);
}

#[test]
fn what_waits_for_a_client_that_does_not_read_is_bounded_over_tls_and_comes_later() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut client = bench.connect_secured();
    let requests: Vec<u8> = (0..100).flat_map(|cookie| request(READ, 0, cookie, 0, LONG)).collect();
    client.say(&requests);
    assert!(bench.sleeps(), "nothing can be done before the client reads");
    let held = bench.server.targets[0].as_ref().unwrap().held_bytes;
    assert!(held <= 40 << 20, "{held} bytes of payload");
    let heard = client.hear(&mut bench, 100 * (16 + LONG as usize));
    assert!(heard.chunks(16 + LONG as usize).all(|answer| answer[4..8] == [0; 4]));
    // One that takes no records for half a minute is ended, although its session has nothing more to say.
    client.say(&request(READ, 0, 0, 0, LONG / 4));
    assert!(bench.sleeps());
    let connection = bench.server.connections[0].as_ref().unwrap();
    assert!(!connection.session.has_output() && connection.has_output());
    for _ in 0..40 {
        bench.now_ns += EXPIRE_NS;
        bench.turn();
        bench.turn();
    }
    assert_eq!(bench.server.connections.iter().flatten().count(), 0);
    bench.server.stop(bench.now_ns);
}

#[test]
fn a_disconnect_over_tls_ends_with_all_that_was_asked_for_and_a_farewell() {
    const DISC: u16 = 2;
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut client = bench.connect_secured();
    // More than a socket holds, so that records wait when the session has nothing left to say.
    client.say(&[request(READ, 0, 1, 0, LONG), request(DISC, 0, 2, 0, 0)].concat());
    assert!(bench.sleeps());
    let heard = client.hear(&mut bench, 16 + LONG as usize);
    assert_eq!(heard[4..8], [0; 4]);
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    assert_eq!(bench.server.connections.iter().flatten().count(), 0);
    assert_eq!(client.heard().0, []);
    assert!(client.machine.process_new_packets().unwrap().peer_has_closed(), "it was told of the end");
    bench.server.stop(bench.now_ns);
}

#[test]
fn garbage_between_records_ends_its_connection_and_no_other() {
    let mut bench = Bench::new(64, null(), Limits::unlimited());
    let mut good = bench.connect_secured();
    let (mut garbage, mut gone) = (bench.connect_secured(), bench.connect_secured());
    let (mut closed, mut forged) = (bench.connect_secured(), bench.connect_secured());
    garbage.socket.write_all(&[0x5a; 3000]).unwrap();
    // A sound head, and a body that nobody has encrypted.
    forged.socket.write_all(&[&[0x17, 3, 3, 0, 64][..], &[9; 64]].concat()).unwrap();
    let half = gone.records(&request(READ, 0, 1, 0, 4096));
    gone.socket.write_all(&half[..half.len() / 2]).unwrap();
    drop(gone);
    // One that says that it says no more, behind a request and without a disconnect.
    closed.machine.writer().write_all(&request(READ, 0, 7, 0, 4096)).unwrap();
    closed.machine.send_close_notify();
    let farewell = closed.records(&[]);
    closed.socket.write_all(&farewell).unwrap();
    bench.server.ready(&(0..5).map(|index| FIRST_TOKEN + index).collect::<Vec<_>>());
    (0..QUIET_TURNS).for_each(|_| bench.turn());
    assert_eq!(bench.server.connections.iter().flatten().count(), 1, "the good one");
    good.say(&request(READ, 0, 7, 0, 4096));
    assert_eq!(good.hear(&mut bench, 16 + 4096)[4..8], [0; 4]);
    let _answer = closed.heard();
    assert!(closed.machine.process_new_packets().unwrap().peer_has_closed(), "a farewell is returned");
    bench.server.stop(bench.now_ns);
}
