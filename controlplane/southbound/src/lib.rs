//! The stream between a node and the control plane: one gRPC method, both ends of it.
//!
//! `/tidegate.Southbound/Link` is a stream each way: a node says [`FromNode`], the control plane says [`ToNode`].
//! Their bytes are those of the contract's own types in JSON, so there is one vocabulary and nothing that
//! translates it (docs/decisions/048). A connection carries one link; whoever loses it dials again, and since
//! everything said is level-triggered, nothing is owed from the one before.
//!
//! Invariants: a message has at most [`MESSAGE_BYTES_MAX`] bytes in either direction; a silent peer is found by
//! HTTP/2 pings within [`SILENCE`].

#![forbid(unsafe_code)]

mod codec;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use contract::{FromNode, ToNode};
use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};

use crate::codec::Json;

/// The method's path.
pub const PATH: &str = "/tidegate.Southbound/Link";
/// Longest message: a snapshot with 100,000 volumes fits.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Messages that wait to be sent in one direction; a peer that takes none is not waited for.
pub const QUEUE: usize = 256;
/// How long a peer may be silent.
pub const SILENCE: Duration = Duration::from_secs(4);

/// What arrives from a node.
pub type FromNodes = Streaming<FromNode>;
/// What arrives from the control plane.
pub type ToNodes = Streaming<ToNode>;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// What answers does not speak HTTP/2.
    #[error("what answers is no control plane: {0}")]
    Http(#[from] hyper::Error),
    /// The token is no header.
    #[error("the token has characters that cannot be sent; it is one line of ASCII")]
    Token,
    /// It was refused, or it ended.
    #[error("the control plane says: {} ({})", .0.message(), .0.code())]
    Refused(#[from] Status),
}

/// The node's end over a connection that was made: says what `said` yields, returns what is heard.
pub async fn dial<I, S>(io: I, token: Option<&str>, said: S) -> Result<ToNodes, LinkError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Stream<Item = FromNode> + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(SILENCE / 2)
        .keep_alive_timeout(SILENCE / 2)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await?;
    // It ends with the link; why, the link says.
    tokio::spawn(connection);
    let mut request = Request::new(said);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().map_err(|_| LinkError::Token)?;
        request.metadata_mut().insert("authorization", value);
    }
    let mut client =
        tonic::client::Grpc::with_origin(Connection(sender), http::Uri::from_static("http://tidegate"))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let answer = client.streaming(request, PathAndQuery::from_static(PATH), Json::new()).await?;
    Ok(answer.into_inner())
}

/// The control plane's end of a request for [`PATH`]: `take` gets what the node says and returns what is said
/// to it.
pub async fn answer<B, T, S>(request: http::Request<B>, take: T) -> http::Response<Body>
where
    B: http_body::Body + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send,
    T: FnOnce(FromNodes) -> S + Send,
    S: Stream<Item = ToNode> + Send + 'static,
{
    let mut server = tonic::server::Grpc::new(Json::new())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    server.streaming(Take(Some(take)), request).await
}

/// One HTTP/2 connection as tonic's client wants it.
struct Connection(http2::SendRequest<Body>);

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;

impl tower_service::Service<http::Request<Body>> for Connection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Future<Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// A closure as tonic's server wants it.
struct Take<T>(Option<T>);

impl<T, S> tonic::server::StreamingService<FromNode> for Take<T>
where
    T: FnOnce(FromNodes) -> S,
    S: Stream<Item = ToNode> + Send + 'static,
{
    type Response = ToNode;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<FromNodes>) -> Self::Future {
        let taken = self.0.take().ok_or_else(|| Status::internal("a request is answered once"));
        std::future::ready(taken.map(|take| {
            let said: Self::ResponseStream =
                Box::pin(tokio_stream::StreamExt::map(take(request.into_inner()), Ok));
            Response::new(said)
        }))
    }
}
