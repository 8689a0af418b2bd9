//! Links to data planes: each connection is a session with a number of its own.
//!
//! What a node reports is also kept here as it came, for who wants to look at live figures: the core keeps only
//! what it decides by.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use contract::{FromNode, Name, NodeReport, VolumeId, VolumeReport};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

use crate::api::Shell;
use crate::doors::Peer;
use crate::driver::Link;

/// The latest report of each node that is linked, by name.
#[derive(Clone, Default)]
pub struct Live(Arc<Mutex<BTreeMap<Name, Latest>>>);

/// What a node last said.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Its link.
    session: u64,
    /// The report; its volumes are in `volumes`.
    pub report: NodeReport,
    /// All volumes that it has open.
    pub volumes: BTreeMap<VolumeId, VolumeReport>,
}

impl Live {
    /// A copy of everything.
    pub fn all(&self) -> BTreeMap<Name, Latest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn said(&self, session: u64, name: &Name, mut report: NodeReport) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let volumes = std::mem::take(&mut report.volumes);
        let before = all.remove(name).filter(|latest| !report.whole && latest.session == session);
        let mut known = before.map(|latest| latest.volumes).unwrap_or_default();
        known.extend(volumes.into_iter().map(|volume| (volume.volume, volume)));
        all.insert(name.clone(), Latest { session, report, volumes: known });
    }

    fn closed(&self, session: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, latest| latest.session != session);
    }
}

/// Numbers of sessions; never used twice while the process lives, and the core forgets them with it.
static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// Takes a link.
pub async fn link(
    State(shell): State<Shell>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let answer = southbound::answer(request, move |heard| {
        let (to, say) = mpsc::channel(southbound::QUEUE);
        if let Ok(link) = shell.driver.opened(session, to) {
            tokio::spawn(listen(link, shell.live, session, peer, heard));
        }
        // Without a place in the queue the sender is dropped: the link ends at once and the node dials again.
        ReceiverStream::new(say)
    });
    answer.await.map(axum::body::Body::new).into_response()
}

/// Hears a node until it is gone.
async fn listen(link: Link, live: Live, session: u64, peer: Peer, mut heard: southbound::FromNodes) {
    let mut name: Option<Name> = None;
    let why = loop {
        let message = match heard.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break "it left".to_owned(),
            Err(status) => break status.message().to_owned(),
        };
        match &message {
            FromNode::Hello(info) => {
                info!(node = %info.name, %peer, "linked");
                name = Some(info.name.clone());
            }
            FromNode::Report(report) => {
                if let Some(name) = &name {
                    live.said(session, name, report.clone());
                }
            }
        }
        let is_report = matches!(message, FromNode::Report(_));
        match link.said(message).await {
            Ok(()) => {}
            // It says how it is again and again.
            Err(_) if is_report => warn!("a report was not taken: there are more nodes than can be heard"),
            // It says who it is once for each link.
            Err(why) => break why.to_string(),
        }
    };
    info!(node = name.as_ref().map_or("?", Name::as_str), "link ended: {why}");
    live.closed(session);
    // May wait for a place in the queue.
    let told = tokio::task::spawn_blocking(move || link.closed()).await;
    if told.is_err() {
        warn!("the end of a link was not told");
    }
}
