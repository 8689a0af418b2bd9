//! HTTP/1.1 over a Unix socket, as little as it takes to also say what no client should.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content: String,
    pub body: Vec<u8>,
}

/// Sends bytes and reads until the server closes, or, if `endless`, the head alone. None = it closed without a word.
pub fn say(socket: &Path, bytes: &[u8], endless: bool) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).expect("the control plane listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.set_write_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    // Who sends too much is answered, and hung up on, before the end.
    if let Err(error) = stream.write_all(bytes) {
        let hung_up = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
        assert!(hung_up, "cannot say it: {error}");
    }
    let mut heard = Vec::new();
    let mut piece = [0; 64 << 10];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => heard.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no answer: {error}"),
        }
        let streams = head_end(&heard).is_some_and(|end| {
            String::from_utf8_lossy(&heard[..end]).to_lowercase().contains("text/event-stream")
        });
        if endless && streams {
            break;
        }
    }
    (!heard.is_empty()).then(|| parse(&heard))
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn parse(bytes: &[u8]) -> Answer {
    let end = head_end(bytes).unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(bytes)));
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let content = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
    });
    Answer { status, content: content.unwrap_or_default(), body: bytes[end..].to_vec() }
}
