//! The client that commands use: plain HTTP to the admin port of one node. TLS is the business of a proxy in front.

use crate::api::{
    ApiError, Filter, Health, ImportReport, ImportRequest, NodeIdentity, OrderReport, OrderRequest,
    PartnerTest, Problem, Query, Reply, SendReply, SendRequest, Status,
};
use crate::core::in_full::causes;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use reqwest::{Body, Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;

/// How long a node may take to accept a connection: it is on this machine or near.
const CONNECT: Duration = Duration::from_secs(5);
/// Largest answer that is read as a whole. Lists are bounded well below it; exports are streamed.
const ANSWER_LIMIT: usize = 256 << 20;

/// Why a node could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("`{0}` is no address of a node, expected HOST:PORT or http://HOST:PORT")]
    Address(String),
    /// Nobody listens there.
    #[error("no node answers at {address}")]
    NotRunning {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The node answered with a problem.
    #[error("{0}")]
    Api(ApiError),
    /// Something else answers there, or the connection broke.
    #[error("the answer of {address} cannot be used: {detail}")]
    Protocol {
        /// The address.
        address: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The file to be sent could not be read, or what came could not be written.
    #[error(transparent)]
    Local(io::Error),
}

/// A node's admin port.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    token: Option<String>,
    http: reqwest::Client,
}

impl Client {
    /// For the node at this address: `127.0.0.1:7070`, with or without `http://`.
    ///
    /// # Errors
    /// If it is no address.
    pub fn new(address: &str, token: Option<String>) -> Result<Self, ClientError> {
        let plain = address
            .strip_prefix("http://")
            .unwrap_or(address)
            .trim_end_matches('/');
        let wrong = || ClientError::Address(address.to_owned());
        let authority: http::uri::Authority = plain.parse().map_err(|_| wrong())?;
        if authority.port().is_none() || authority.host().is_empty() || plain.contains('@') {
            return Err(wrong());
        }
        // A proxy of the environment has no business between a command and its node, and a node does not redirect.
        // Never used, but reqwest asks for it where another part of the build has switched TLS on.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .build()
            .map_err(|e| ClientError::Local(io::Error::other(e)))?;
        Ok(Self {
            address: plain.to_owned(),
            token: token.filter(|t| !t.is_empty()),
            http,
        })
    }

    /// The address it asks.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Which node it is.
    pub async fn identity(&self) -> Result<NodeIdentity, ClientError> {
        self.get("/api/node").await
    }
    /// What stands out in the records of its topics.
    pub async fn hints(&self) -> Result<Vec<String>, ClientError> {
        self.get("/api/hints").await
    }
    /// The node as it stands.
    pub async fn status(&self) -> Result<Status, ClientError> {
        let status: Status = self.get("/api/status").await?;
        // Every field has a default, so that older nodes can be asked; but each of them says its version.
        if status.node.version.is_empty() {
            return Err(self.protocol("it has no version; is this a node's admin port?"));
        }
        Ok(status)
    }
    /// Whether it is alive, or ready: also what stands against it is an answer.
    pub async fn health(&self, ready: bool) -> Result<Health, ClientError> {
        let path = if ready { "/readyz" } else { "/healthz" };
        let url = format!("http://{}{path}", self.address);
        let answer = self.http.get(url).send().await.map_err(|e| self.no_answer(&e))?;
        let ok = answer.status().is_success();
        let health: Health = self.read(answer).await?;
        if ok == health.ok {
            return Ok(health);
        }
        Err(self.protocol("its status and its text disagree; is this a node's admin port?"))
    }
    /// A question.
    pub async fn query(&self, query: &Query) -> Result<Reply, ClientError> {
        self.post("/api/query", query).await
    }
    /// An order.
    pub async fn order(&self, order: &OrderRequest) -> Result<OrderReport, ClientError> {
        self.post("/api/order", order).await
    }
    /// One record.
    pub async fn send(&self, record: &SendRequest) -> Result<SendReply, ClientError> {
        self.post("/api/send", record).await
    }
    /// A trial connection to a partner.
    pub async fn test_partner(&self, partner: &str) -> Result<PartnerTest, ClientError> {
        let name: String = url::form_urlencoded::byte_serialize(partner.as_bytes()).collect();
        // In a path a plus is a plus.
        self.post(&format!("/api/partners/{}/test", name.replace('+', "%20")), &())
            .await
    }
    /// Another log filter.
    pub async fn set_log_level(&self, level: &str) -> Result<(), ClientError> {
        let body = serde_json::json!({ "level": level }).to_string();
        self.ask(Method::PUT, "/api/log-level", "application/json", body)
            .await
            .map(drop)
    }

    /// A file into a topic. The pieces are sent as they come; a stream that ends is a whole file, one that yields an
    /// error is none.
    pub async fn import<S>(&self, request: &ImportRequest, pieces: S) -> Result<ImportReport, ClientError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Sync + 'static,
    {
        let path = format!("/api/import?{}", query_string(request)?);
        let body = Body::wrap(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))));
        let answer = self
            .ask(Method::POST, &path, "application/octet-stream", body)
            .await?;
        self.read(answer).await
    }

    /// Remembered IDs, handed to `take` as whole lines of JSON come in.
    pub async fn export(
        &self,
        filter: &Filter,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let path = format!("/api/dedup/export?{}", query_string(filter)?);
        let mut answer = self.ask(Method::GET, &path, "application/json", "").await?;
        // A body that ends with its connection looks the same whole and cut off.
        if !answer.headers().contains_key(TRANSFER_ENCODING) && !answer.headers().contains_key(CONTENT_LENGTH)
        {
            return Err(self.protocol("its end cannot be told from a connection that breaks"));
        }
        while let Some(piece) = self.piece(&mut answer).await? {
            take(&piece).map_err(ClientError::Local)?;
        }
        Ok(())
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.ask(Method::GET, path, "application/json", "").await?;
        self.read(answer).await
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ClientError> {
        let text = serde_json::to_string(body).map_err(|e| self.protocol(e.to_string()))?;
        let answer = self.ask(Method::POST, path, "application/json", text).await?;
        self.read(answer).await
    }

    fn protocol(&self, detail: impl Into<String>) -> ClientError {
        ClientError::Protocol {
            address: self.address.clone(),
            detail: detail.into(),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: impl Into<Body>,
    ) -> Result<Response, ClientError> {
        let mut request = self
            .http
            .request(method, format!("http://{}{path}", self.address))
            .header(CONTENT_TYPE, kind)
            .body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.map_err(|e| self.no_answer(&e))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let bytes = self.whole(answer).await?;
        Err(match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => ClientError::Api(problem.into_error()),
            Err(_) => self.protocol(format!(
                "it says {status}, without a problem document; is this a node's admin port?"
            )),
        })
    }

    /// Why no answer came: nobody listens there, or what listens does not speak HTTP.
    fn no_answer(&self, error: &reqwest::Error) -> ClientError {
        if !error.is_connect() {
            return self.protocol(last_cause(error));
        }
        let kind = causes(error)
            .find_map(|cause| cause.downcast_ref::<io::Error>())
            .map(io::Error::kind);
        let source = match kind {
            Some(kind) => kind.into(),
            None if error.is_timeout() => io::ErrorKind::TimedOut.into(),
            None => io::Error::other(last_cause(error)),
        };
        ClientError::NotRunning {
            address: self.address.clone(),
            source,
        }
    }

    async fn whole(&self, mut answer: Response) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&mut answer).await? {
            if bytes.len() + piece.len() > ANSWER_LIMIT {
                return Err(self.protocol(format!("it is longer than {ANSWER_LIMIT} bytes")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    async fn piece(&self, answer: &mut Response) -> Result<Option<Bytes>, ClientError> {
        let piece = answer.chunk().await;
        piece.map_err(|e| self.protocol(format!("it breaks off: {}", last_cause(&e))))
    }

    async fn read<T: DeserializeOwned>(&self, answer: Response) -> Result<T, ClientError> {
        let bytes = self.whole(answer).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| self.protocol(format!("{e}; is this a node's admin port, of the same version?")))
    }
}

/// The last cause says most; the outer ones only repeat the address.
fn last_cause(error: &reqwest::Error) -> String {
    causes(error)
        .last()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// The query string of a flat struct; lists repeat their name.
fn query_string(value: &impl Serialize) -> Result<String, ClientError> {
    let value = serde_json::to_value(value).map_err(|e| ClientError::Local(io::Error::other(e)))?;
    let mut out = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in value.as_object().into_iter().flatten() {
        let values = match value {
            serde_json::Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            match value {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) => {
                    out.append_pair(name, text);
                }
                other => {
                    out.append_pair(name, &other.to_string());
                }
            }
        }
    }
    Ok(out.finish())
}
