//! The other end of the control socket: what `stats`, `reload` and `move` use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::report::{Moved, Report};
use crate::traces::{TraceQuery, TraceReport};

/// Why a data plane could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody there.
    #[error("no data plane answers on {}: {source}; is it running, and is this its control socket?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// None in the usual place.
    #[error(
        "no control socket in {}; is a data plane running? --socket names one elsewhere",
        crate::server::SOCKETS
    )]
    None,
    /// Several in the usual place.
    #[error("several data planes: {}; choose one with --socket", .0.join(", "))]
    Several(Vec<String>),
    /// It took too long.
    #[error("the data plane has not answered for {} s; its log may say why", .0.as_secs())]
    Silent(Duration),
    /// The conversation broke off.
    #[error("the data plane broke off: {0}")]
    Broken(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// The socket to use when none is named: the only one there is.
pub fn default_socket() -> Result<PathBuf, AskError> {
    only_socket(Path::new(crate::server::SOCKETS))
}

fn only_socket(folder: &Path) -> Result<PathBuf, AskError> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    found.sort_unstable();
    match found.as_slice() {
        [] => Err(AskError::None),
        [only] => Ok(only.clone()),
        several => Err(AskError::Several(several.iter().map(|path| path.display().to_string()).collect())),
    }
}

/// Asks for a report.
pub fn stats(socket: &Path, prefix: &str, limit: usize) -> Result<Report, AskError> {
    let path = format!("/stats?volumes={}&limit={limit}", encoded(prefix));
    let body = ask(socket, Method::GET, &path, ANSWER)?;
    serde_json::from_slice(&body).map_err(|error| AskError::Broken(error.to_string()))
}

/// Asks for I/Os that were followed.
pub fn trace(socket: &Path, asked: &TraceQuery) -> Result<TraceReport, AskError> {
    let TraceQuery { volume, after, outliers, slowest, limit } = asked;
    let volume = encoded(volume);
    let path =
        format!("/trace?volume={volume}&after={after}&outliers={outliers}&slowest={slowest}&limit={limit}");
    let body = ask(socket, Method::GET, &path, ANSWER)?;
    serde_json::from_slice(&body).map_err(|error| AskError::Broken(error.to_string()))
}

/// Has the configuration reloaded; returns what the data plane says.
pub fn reload(socket: &Path) -> Result<String, AskError> {
    Ok(String::from_utf8_lossy(&ask(socket, Method::POST, "/reload", ANSWER)?).trim_end().to_owned())
}

/// Has an export handed over to another worker.
pub fn move_export(socket: &Path, export: &str, worker: usize) -> Result<Moved, AskError> {
    let path = format!("/move?volume={}&worker={worker}", encoded(export));
    let body = ask(socket, Method::POST, &path, ANSWER)?;
    serde_json::from_slice(&body).map_err(|error| AskError::Broken(error.to_string()))
}

/// A text as part of a query (RFC 3986, clause 2.1).
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn ask(socket: &Path, method: Method, path: &str, patience: Duration) -> Result<Bytes, AskError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let answer = runtime.block_on(async {
        let silent = |_| AskError::Silent(patience);
        tokio::time::timeout(patience, exchange(socket, method, path)).await.map_err(silent)
    });
    answer?
}

async fn exchange(socket: &Path, method: Method, path: &str) -> Result<Bytes, AskError> {
    let stream = tokio::net::UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::Connect { path: socket.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "tidegate")
        .body(Empty::<Bytes>::new())
        .map_err(broken)?;
    let answer = sender.send_request(request).await.map_err(broken)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(broken)?.to_bytes();
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(AskError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned()))
    }
}

fn broken(error: impl std::fmt::Display) -> AskError {
    AskError::Broken(error.to_string())
}

/// A reload of a large configuration takes seconds; nothing takes longer than this.
const ANSWER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_survives_the_query() {
        assert_eq!(encoded("disk-1_a.b~"), "disk-1_a.b~");
        assert_eq!(encoded("a b&c=é"), "a%20b%26c%3D%C3%A9");
    }

    #[test]
    fn the_only_socket_is_found_and_several_are_told() {
        let folder = std::env::temp_dir().join(format!("tidegate-client-{}", std::process::id()));
        assert!(matches!(only_socket(&folder), Err(AskError::None)));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("notes.txt"), "").unwrap();
        assert!(matches!(only_socket(&folder), Err(AskError::None)));
        std::fs::write(folder.join("b.sock"), "").unwrap();
        assert_eq!(only_socket(&folder).unwrap(), folder.join("b.sock"));
        std::fs::write(folder.join("a.sock"), "").unwrap();
        let Err(AskError::Several(found)) = only_socket(&folder) else { panic!("there are two") };
        assert!(found[0].ends_with("a.sock") && found[1].ends_with("b.sock"), "{found:?}");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn nobody_and_somebody_else_are_told_apart() {
        let path = std::env::temp_dir().join(format!("tidegate-broken-{}.sock", std::process::id()));
        assert!(matches!(stats(&path, "", 1), Err(AskError::Connect { .. })));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let hang_up = std::thread::spawn(move || drop(listener.accept()));
        assert!(matches!(reload(&path), Err(AskError::Broken(_))));
        hang_up.join().unwrap();
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn one_that_never_answers_is_given_up() {
        let path = std::env::temp_dir().join(format!("tidegate-silent-{}.sock", std::process::id()));
        // The kernel takes the connection; nobody ever accepts it.
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let silent = ask(&path, Method::GET, "/stats", patience).unwrap_err();
        assert!(matches!(silent, AskError::Silent(waited) if waited == patience), "{silent}");
        std::fs::remove_file(&path).unwrap();
    }
}
