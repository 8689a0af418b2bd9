//! What clients say, read; what cannot be read is refused in JSON like everything else.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::api::{No, refusal};

/// A body in JSON.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = No;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, No> {
        let read = Json::from_request(request, state).await;
        read.map(|Json(body)| Body(body)).map_err(|no| refusal(no.status(), no.body_text()))
    }
}

/// A body of bytes.
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = No;

    async fn from_request(request: Request, state: &S) -> Result<Raw, No> {
        let read = Bytes::from_request(request, state).await;
        read.map(Raw).map_err(|no| refusal(no.status(), no.body_text()))
    }
}

/// What stands behind the question mark.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = No;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, No> {
        let read = Query::from_request_parts(parts, state).await;
        read.map(|Query(asked)| Asked(asked)).map_err(|no| refusal(no.status(), no.body_text()))
    }
}

/// The id or name in a path.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = No;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named, No> {
        let read = Path::from_request_parts(parts, state).await;
        read.map(|Path(named)| Named(named)).map_err(|no| refusal(no.status(), no.body_text()))
    }
}
