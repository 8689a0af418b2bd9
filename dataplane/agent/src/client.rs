//! The other end of the control socket: what `stats` and `reload` use.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;

use crate::report::Report;

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
    /// Several, or none, in the usual place.
    #[error("{found} control sockets in {folder}; name one with --socket")]
    Which {
        /// How many.
        found: usize,
        /// Where.
        folder: &'static str,
    },
    /// The conversation broke off.
    #[error("the data plane broke off: {0}")]
    Broken(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// The socket to use when none is named: the only one there is.
pub fn default_socket() -> Result<PathBuf, AskError> {
    let folder = crate::server::SOCKETS;
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (one, rest) => Err(AskError::Which { found: rest + usize::from(one.is_some()), folder }),
    }
}

/// Asks for a report.
pub fn stats(socket: &Path, prefix: &str, limit: usize) -> Result<Report, AskError> {
    let body = ask(socket, Method::GET, &format!("/stats?volumes={prefix}&limit={limit}"))?;
    serde_json::from_slice(&body).map_err(|error| AskError::Broken(error.to_string()))
}

/// Has the configuration reloaded; returns what the data plane says.
pub fn reload(socket: &Path) -> Result<String, AskError> {
    Ok(String::from_utf8_lossy(&ask(socket, Method::POST, "/reload")?).trim_end().to_owned())
}

fn ask(socket: &Path, method: Method, path: &str) -> Result<Bytes, AskError> {
    let broken = |error: &dyn std::fmt::Display| AskError::Broken(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| broken(&error))?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket)
            .await
            .map_err(|source| AskError::Connect { path: socket.to_owned(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, "tidegate")
            .body(Empty::<Bytes>::new())
            .map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| broken(&error))?.to_bytes();
        if status == StatusCode::OK {
            Ok(body)
        } else {
            Err(AskError::Refused(String::from_utf8_lossy(&body).trim_end().to_owned()))
        }
    })
}
