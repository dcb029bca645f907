//! What a request asks, read from its query string ([`Wanted`]) or its JSON body ([`Posted`]). What is wrong goes back
//! as a problem that says what and where: only the caller's own text is in it.

use super::server::{BODY_LIMIT, problem};
use crate::api::ApiError;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::Response;
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// A body must be there within so long: whoever stops in the middle must not keep a connection for ever.
const BODY: Duration = Duration::from_secs(30);

/// A query string.
pub(super) struct Wanted<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Wanted<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        parameters(parts.uri.query()).map(Self).map_err(|e| problem(&e))
    }
}

/// A JSON body.
pub(super) struct Posted<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Posted<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let Ok(body) = tokio::time::timeout(BODY, Bytes::from_request(request, state)).await else {
            let late = format!("the body was not there after {} s", BODY.as_secs());
            return Err(problem(&ApiError::Invalid(late)));
        };
        let body = body.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge { limit: BODY_LIMIT },
            _ => ApiError::Invalid("the body broke off".into()),
        });
        let read =
            |b: Bytes| serde_json::from_slice(&b).map_err(|e| ApiError::Invalid(format!("the body: {e}")));
        body.and_then(read).map(Self).map_err(|e| problem(&e))
    }
}

/// Reads a query string into a type; unknown names are refused, for a mistyped filter would take everything.
fn parameters<T: DeserializeOwned>(query: Option<&str>) -> Result<T, ApiError> {
    let mut object = serde_json::Map::new();
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let value = value.into_owned();
        match &*name {
            "id" | "ids" => {
                let ids = object
                    .entry("ids")
                    .or_insert_with(|| serde_json::Value::Array(Vec::new()));
                if let serde_json::Value::Array(ids) = ids {
                    ids.push(value.into());
                }
            }
            "partition" | "round" | "limit" => {
                let number: u64 = value
                    .parse()
                    .map_err(|_| ApiError::Invalid(format!("{name} is `{value}`, expected a number")))?;
                object.insert(name.into_owned(), number.into());
            }
            "again" | "strict" | "rest" => {
                let yes: bool = value
                    .parse()
                    .map_err(|_| ApiError::Invalid(format!("{name} is `{value}`, expected true or false")))?;
                object.insert(name.into_owned(), yes.into());
            }
            _ => {
                object.insert(name.into_owned(), value.into());
            }
        }
    }
    serde_json::from_value(object.into()).map_err(|e| ApiError::Invalid(format!("the query string: {e}")))
}
