//! NBD over TLS: programs that we did not write, and clients who should not get in.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tests::gateway::folder;
use tests::netns::client;
use wire::nbd::handshake::{OptionCode, OptionHeader, OptionReplyHeader, ReplyCode};

use crate::client::{Client, greeted};
use crate::clients::{MIB, image, text};
use crate::place::{Place, file, memory};

/// Connections of each kind that means no good.
const CROWD: usize = 50;

/// Somebody who vouches for servers and clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        Authority(CertifiedIssuer::self_signed(params, key).expect("it signs itself"))
    }

    /// Writes `{what}-cert.pem` and `{what}-key.pem`, for a server at 127.0.0.1 or for a client.
    fn vouch(&self, folder: &Path, what: &str) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("the names are sound");
        params.distinguished_name.push(DnType::CommonName, what);
        // QEMU insists on the second.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match what {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params.signed_by(&key, &self.0).expect("it is signed");
        write(folder, &format!("{what}-cert.pem"), &certificate.pem());
        write(folder, &format!("{what}-key.pem"), &key.serialize_pem());
    }

    /// Writes `ca-cert.pem`, for those who trust it.
    fn trust(&self, folder: &Path) {
        write(folder, "ca-cert.pem", &self.0.pem());
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(folder).expect("a folder for certificates");
    std::fs::write(folder.join(name), text).expect("a certificate can be written");
}

/// Certificates as libnbd and QEMU look for them; the server's lie there too.
fn pki(at: &Path, authority: &Authority) -> PathBuf {
    let folder = at.join("pki");
    authority.trust(&folder);
    authority.vouch(&folder, "server");
    authority.vouch(&folder, "client");
    folder
}

/// `[nbd] tls` of a server with these certificates.
fn tls(pki: &Path, required: bool) -> String {
    let pki = pki.display();
    format!(
        "tls = {{ certificate = \"{pki}/server-cert.pem\", key = \"{pki}/server-key.pem\", \
         client_ca = \"{pki}/ca-cert.pem\", required = {required} }}\n"
    )
}

/// The URI of an export over TLS.
fn secured(uri: &str, pki: &Path) -> String {
    let uri = uri.replacen("nbd", "nbds", 1);
    let separator = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{separator}tls-certificates={}", pki.display())
}

/// Runs a client that must fail; what it says. `None` when it is not installed.
fn refused(program: &str, args: &[&str]) -> Option<String> {
    let output = Program::new(program).args(args).output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{program} {args:?} must fail\n{said}");
    Some(said)
}

/// A client of our own over TLS.
fn connect(place: &Place, pki: &Path, export: &str) -> Client {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(pki.join("ca-cert.pem")).expect("it is there") {
        roots.add(root.expect("sound")).expect("sound");
    }
    let chain = CertificateDer::pem_file_iter(pki.join("client-cert.pem")).expect("it is there");
    let chain = chain.map(|certificate| certificate.expect("sound")).collect();
    let key = PrivateKeyDer::from_pem_file(pki.join("client-key.pem")).expect("it is there");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("they belong together");
    let name = ServerName::try_from("localhost").expect("a name");
    let machine = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = started(place);
    Client::choose(Box::new(StreamOwned::new(machine, socket)), export).expect("the export is there")
}

/// A socket on which the daemon awaits a TLS handshake.
fn started(place: &Place) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", place.port)).expect("the daemon listens");
    greeted(&mut socket).expect("greeted");
    assert_eq!(option(&mut socket, OptionCode::STARTTLS), ReplyCode::ACK);
    socket
}

/// Sends an option without data; the code of its answer.
fn option(socket: &mut TcpStream, option: OptionCode) -> ReplyCode {
    socket.write_all(&OptionHeader { option, data_bytes: 0 }.octets()).expect("sent");
    let mut octets = [0; OptionReplyHeader::BYTES];
    socket.read_exact(&mut octets).expect("answered");
    let reply = OptionReplyHeader::parse(&octets).expect("a reply");
    socket.read_exact(&mut vec![0; reply.data_bytes as usize]).expect("with text");
    reply.code
}

/// Writes and reads back.
fn works(client: &mut Client, round: u8) {
    let bytes: Vec<u8> = (0..MIB).map(|at| (at / 4096) as u8 ^ round).collect();
    client.write(0, &bytes).expect("a write is answered");
    let mut back = vec![0; MIB];
    client.read(0, &mut back).expect("a read is answered");
    assert!(back == bytes, "round {round}: what was written is read");
}

#[test]
fn programs_of_others_copy_compare_and_verify_over_tls() {
    const TEST: &str = "programs_of_others_copy_compare_and_verify_over_tls";
    let at = folder("serve-tls");
    let pki = pki(&at, &Authority::new("ours"));
    let exports = [file("file", &at.join("file"), "64MiB", 4096), memory("memory", "64MiB", "")];
    let place =
        Place::secured(at.clone(), "serve-tls", &tls(&pki, true), &exports.each_ref().map(String::as_str));
    let source = at.join("source");
    image(&source, 64 * MIB);
    let expected = std::fs::read(&source).expect("it was written");
    for uri in [Place::tcp, Place::unix] {
        let list = client(TEST, "nbdinfo", &["--list", &secured(&uri(&place, ""), &pki)]);
        let Some(list) = list else { return place.stop() };
        assert!(list.contains("with TLS") && list.contains("export=\"memory\""), "{list}");
        for export in ["file", "memory"] {
            let (uri, back) = (secured(&uri(&place, export), &pki), at.join("back"));
            client(TEST, "nbdcopy", &["--flush", text(&source), &uri]);
            client(TEST, "nbdcopy", &[&uri, text(&back)]);
            assert!(std::fs::read(&back).expect("it was copied") == expected, "{uri} gives back what it got");
            std::fs::remove_file(back).expect("it can be removed");
        }
    }
    // The file of Debian, whatever other Python the machine has.
    let uri = format!("h.connect_uri({:?})", secured(&place.tcp("file"), &pki));
    let allow = "h.set_uri_allow_local_file(True)";
    let talk = "assert h.get_tls_negotiated()\nh.pwrite(b'tide' * 1024, 8192)\nh.flush()\n\
                assert h.pread(4096, 8192) == b'tide' * 1024\nh.shutdown()";
    let script = ["import nbd\nh = nbd.NBD()", allow, &uri, talk].join("\n");
    client(TEST, "/usr/bin/python3", &["-c", &script]);

    let creds = format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", pki.display());
    let image = |export: &str| {
        format!("driver=nbd,host=127.0.0.1,port={},export={export},tls-creds=tls0", place.port)
    };
    let plain = format!("driver=raw,file.filename={}", source.display());
    let objects = ["--object", &creds, "--image-opts"];
    let (memory, file) = (image("memory"), image("file"));
    for (from, to) in [(&plain, &memory), (&memory, &file)] {
        client(
            TEST,
            "qemu-img",
            &[&["convert"], &objects[..], &["--target-image-opts", "-n", from, to]].concat(),
        );
        client(TEST, "qemu-img", &[&["compare"], &objects[..], &[&plain, to]].concat());
    }
    place.stop();
}

#[test]
fn who_is_not_trusted_or_not_encrypted_gets_nothing() {
    const TEST: &str = "who_is_not_trusted_or_not_encrypted_gets_nothing";
    let at = folder("serve-tls-trust");
    let ours = Authority::new("ours");
    let pki = pki(&at, &ours);
    // A client of somebody else, and one without any certificate; both trust us. One of ours who does not.
    let (foreign, nameless, doubting) = (at.join("foreign"), at.join("nameless"), at.join("doubting"));
    let other = Authority::new("other");
    ours.trust(&foreign);
    other.vouch(&foreign, "client");
    ours.trust(&nameless);
    other.trust(&doubting);
    ours.vouch(&doubting, "client");
    let place =
        Place::secured(at.clone(), "serve-tls-trust", &tls(&pki, true), &[&memory("disk", "64MiB", "")]);
    let mut good = connect(&place, &pki, "disk");
    works(&mut good, 0);
    if client(TEST, "nbdinfo", &[&secured(&place.tcp("disk"), &pki)]).is_none() {
        return place.stop();
    }
    for stranger in [&foreign, &nameless, &doubting] {
        refused("nbdinfo", &[&secured(&place.tcp("disk"), stranger)]);
    }
    let said = refused("nbdinfo", &[&place.tcp("disk")]).expect("it is installed");
    assert!(said.contains("Operation not supported"), "{said}");
    works(&mut good, 1);

    let mut plain = TcpStream::connect(("127.0.0.1", place.port)).expect("the daemon listens");
    greeted(&mut plain).expect("greeted");
    for code in [OptionCode::LIST, OptionCode::STRUCTURED_REPLY, OptionCode::GO] {
        assert_eq!(option(&mut plain, code), ReplyCode::ERR_TLS_REQD, "{code}");
    }
    place.stop();
}

#[test]
fn half_a_handshake_and_garbage_disturb_nobody() {
    let at = folder("serve-tls-hostile");
    let pki = pki(&at, &Authority::new("ours"));
    let place =
        Place::secured(at.clone(), "serve-tls-hostile", &tls(&pki, true), &[&memory("disk", "64MiB", "")]);
    let mut good = connect(&place, &pki, "disk");
    let mut held = Vec::new();
    // The head of a ClientHello, and no more.
    for number in 0..CROWD {
        let mut socket = started(&place);
        socket.write_all(&[0x16, 3, 1, 2, 0, 1, 0][..number % 8]).expect("sent");
        held.push(socket);
    }
    works(&mut good, 1);
    // Something else than TLS: an alert, and the end.
    for _ in 0..CROWD {
        let mut socket = started(&place);
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
        // It may have closed with unread bytes.
        let _ = socket.read_to_end(&mut Vec::new());
    }
    works(&mut good, 2);
    // Options behind STARTTLS, in the same piece: not to be taken for what was said over TLS.
    let mut early = TcpStream::connect(("127.0.0.1", place.port)).expect("the daemon listens");
    greeted(&mut early).expect("greeted");
    let both = [OptionCode::STARTTLS, OptionCode::LIST];
    let both = both.map(|option| OptionHeader { option, data_bytes: 0 }.octets());
    early.write_all(&both.concat()).expect("sent");
    let mut heard = Vec::new();
    let _ = early.read_to_end(&mut heard);
    assert!(heard.len() <= OptionReplyHeader::BYTES, "nothing but the answer to STARTTLS");
    // Gone with requests under way, in the middle of a record.
    for _ in 0..CROWD {
        let mut client = connect(&place, &pki, "disk");
        let read = (wire::nbd::transmission::Command::READ, wire::nbd::transmission::CommandFlags(0));
        client.send(read, 0, MIB as u32, &[]).expect("sent");
    }
    works(&mut good, 3);
    drop(held);
    place.stop();
}

#[test]
fn a_reload_takes_new_certificates_and_refuses_wrong_ones() {
    let at = folder("serve-tls-reload");
    let old = pki(&at, &Authority::new("old"));
    let export = memory("disk", "64MiB", "");
    let mut place = Place::secured(at.clone(), "serve-tls-reload", &tls(&old, true), &[&export]);
    let mut before = connect(&place, &old, "disk");
    works(&mut before, 1);

    // A key that does not belong to its certificate: nothing changes.
    let mixed = at.join("mixed");
    Authority::new("mixed").trust(&mixed);
    Authority::new("mixed").vouch(&mixed, "server");
    std::fs::copy(old.join("server-key.pem"), mixed.join("server-key.pem")).expect("copied");
    let said = place.try_secure(&tls(&mixed, true)).expect_err("they do not belong together").to_string();
    assert!(said.contains("mixed/server-cert.pem") && said.contains("server-key.pem"), "{said}");
    works(&mut connect(&place, &old, "disk"), 2);

    // The same files with other certificates, as a renewal leaves them.
    let renewed = Authority::new("renewed");
    let new = at.join("new");
    renewed.trust(&new);
    renewed.vouch(&new, "client");
    renewed.trust(&old);
    renewed.vouch(&old, "server");
    place.try_secure(&tls(&old, true)).expect("they are taken");
    works(&mut connect(&place, &new, "disk"), 3);
    works(&mut before, 4);

    // Allowed, but not required: who comes without is served too.
    place.try_secure(&tls(&old, false)).expect("taken");
    works(&mut Client::unix(&place.socket(), "disk"), 5);
    works(&mut connect(&place, &new, "disk"), 6);
    place.stop();
}
