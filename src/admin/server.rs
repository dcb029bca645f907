//! The server: routes, and nothing that a route does not need.
//!
//! | path | does |
//! |---|---|
//! | `GET /healthz`, `/readyz` | alive, ready: 200 or 503, and why |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /` | the page |
//! | `GET /api/node` | which node it is |
//! | `GET /api/hints` | topics whose records have an obvious ID that is not used |
//! | `GET /api/status`, `/api/partners` | the node as it stands |
//! | `GET /api/message?id=` | what became of a message |
//! | `GET /api/doubt`, `/api/dead` | lists; the query string is the filter |
//! | `GET /api/dedup/{get,list,stats,export}` | the dedup store |
//! | `GET /api/skip` | skip rules |
//! | `POST /api/query` | any [`Query`] |
//! | `POST /api/order` | an [`OrderRequest`] |
//! | `POST /api/import?topic=&name=` | a file, as the body |
//! | `POST /api/send` | one record |
//! | `POST /api/partners/NAME/test` | a trial connection |
//! | `PUT /api/log-level` | `{"level": "debug"}` |
//!
//! Errors are problem documents (RFC 9457). The probes port has the first three only, and asks for no token.

use super::ask::{Posted, Wanted};
use super::guard::{Credentials, Guard, one_host};
use super::listener::{self, Places};
use super::page;
use super::upload::{Upload, UploadSender};
use super::{Answer, Exported, NodeApi};
use crate::api::{ApiError, Filter, Health, ImportRequest, OrderRequest, Problem, Query, SendRequest};
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Extension, Json, Router};
use futures_util::{Stream, StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Largest body of a request that is no file: bulk orders name up to ten thousand IDs.
pub(super) const BODY_LIMIT: usize = 8 << 20;
/// Connections that a port serves at once.
const PLACES: Places = Places { all: 64, probes: 16 };
/// Uploads under way at once: they last long, and must leave connections to commands.
const UPLOADS: usize = 32;
/// An upload of which no further piece comes for so long is broken off: else callers that fell silent would lock every
/// import out. Only the caller's silence counts, not the time that the node takes over what came.
const UPLOAD_SILENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Where to listen, and who may ask.
#[derive(Clone, Default)]
pub struct AdminOptions {
    /// Control API and page; none: nowhere (tests, batch use).
    pub admin: Option<SocketAddr>,
    /// Health and metrics only, without a token.
    pub probes: Option<SocketAddr>,
    /// Asked of every caller of the admin port, where set.
    pub token: Option<String>,
}

/// Why the admin server could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It would be open to the network.
    #[error("listen.admin is `{0}`, which others can reach: set listen.token, or listen on 127.0.0.1")]
    NeedsToken(SocketAddr),
    /// The address cannot be had.
    #[error("cannot listen on `{address}` ({key})")]
    Bind {
        /// The key of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server's own thread or runtime could not be made.
    #[error("cannot start the admin server")]
    Start(#[source] io::Error),
}

/// A server that runs until it is dropped or stopped.
#[derive(Debug)]
pub struct AdminServer {
    admin: Option<SocketAddr>,
    probes: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the server on a thread of its own.
///
/// # Errors
/// If an address cannot be had, or the admin port would be open to the network without a token.
pub fn serve(options: AdminOptions, node: Arc<dyn NodeApi>) -> Result<AdminServer, AdminError> {
    if let (Some(address), None) = (options.admin, &options.token)
        && !address.ip().is_loopback()
    {
        return Err(AdminError::NeedsToken(address));
    }
    let bind = |key, address: Option<SocketAddr>| {
        let Some(address) = address else { return Ok(None) };
        let refused = |source| AdminError::Bind { key, address, source };
        let listener = std::net::TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let bound = listener.local_addr().map_err(refused)?;
        Ok(Some((listener, bound)))
    };
    let admin = bind("listen.admin", options.admin)?;
    let probes = bind("listen.probes", options.probes)?;
    let (stop, stopped) = watch::channel(false);
    let mut server = AdminServer {
        admin: admin.as_ref().map(|a| a.1),
        probes: probes.as_ref().map(|p| p.1),
        stop,
        thread: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AdminError::Start)?;
    let run = move || {
        runtime.block_on(async move {
            let mut ports = JoinSet::new();
            for (listener, bound, is_admin) in admin
                .map(|(l, a)| (l, a, true))
                .into_iter()
                .chain(probes.map(|(l, a)| (l, a, false)))
            {
                let router = if is_admin {
                    admin_router(node.clone(), Guard::new(bound, options.token.clone()))
                } else {
                    probe_routes().with_state(node.clone())
                };
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => {
                        ports.spawn(listener::serve(listener, router, busy, PLACES, stopped.clone()));
                    }
                    Err(e) => tracing::error!(
                        event = "admin_port_failed",
                        error = &e as &dyn std::error::Error,
                        "the admin port {bound} does not work"
                    ),
                }
            }
            // Each ends by itself once the node stops, after its requests under way or their grace.
            while ports.join_next().await.is_some() {}
        });
        // A handler's blocking work whose caller has got no answer must not delay the stop.
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(run)
        .map_err(AdminError::Start)?;
    server.thread = Some(thread);
    Ok(server)
}

impl AdminServer {
    /// Where the admin port listens.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Where the probes port listens.
    pub fn probes(&self) -> Option<SocketAddr> {
        self.probes
    }

    /// Stops listening and waits for the thread to end. The same as dropping it.
    pub fn stop(self) {}
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // Without a receiver every port has ended already.
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Node = Arc<dyn NodeApi>;

fn busy() -> Response {
    problem(&ApiError::Unavailable(
        "all connections of this port are busy; try again in a moment".into(),
    ))
}

/// Alive, ready: the same on both ports.
fn health_routes() -> Router<Node> {
    Router::new()
        .route(
            "/healthz",
            get(|State(node): State<Node>| async move { health(&node.health()) }),
        )
        .route(
            "/readyz",
            get(|State(node): State<Node>| async move { health(&node.ready()) }),
        )
}

fn probe_routes() -> Router<Node> {
    health_routes()
        .route("/metrics", get(metrics))
        .fallback(|| async { problem(&ApiError::NotFound("there is nothing at this path".into())) })
        .layer(middleware::from_fn(finish))
}

fn admin_router(node: Node, guard: Guard) -> Router {
    let api = Router::new()
        .route(
            "/api/status",
            get(|State(n): State<Node>| async move { json(n.status()).await }),
        )
        .route(
            "/api/node",
            get(|State(n): State<Node>| async move { json(n.identity()).await }),
        )
        .route(
            "/api/hints",
            get(|State(n): State<Node>| async move { json(n.hints()).await }),
        )
        .route("/api/partners", get(partners))
        .route("/api/partners/{name}/test", post(test_partner))
        .route("/api/message", get(message))
        .route("/api/doubt", list(|filter| Query::Doubts { filter }))
        .route("/api/dead", list(|filter| Query::Dead { filter }))
        .route("/api/dedup/get", list(|filter| Query::DedupGet { filter }))
        .route("/api/dedup/list", list(|filter| Query::DedupList { filter }))
        .route("/api/dedup/stats", list(|_| Query::DedupStats))
        .route("/api/skip", list(|_| Query::Skips))
        .route("/api/dedup/export", get(export))
        .route("/api/query", post(query))
        .route("/api/order", post(order))
        .route("/api/send", post(send))
        .route("/api/log-level", put(log_level))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .route_layer(middleware::from_fn(announced_too_large))
        // A file may be of any size: it is never held as a whole.
        .route(
            "/api/import",
            post(import).layer(Extension(Uploads::new(Semaphore::new(UPLOADS)))),
        );
    let guarded = |credentials| {
        let guard = guard.clone();
        middleware::from_fn(move |request: Request, next: Next| {
            let checked = guard.check(request.method(), request.uri(), request.headers(), credentials);
            async move {
                match checked {
                    Ok(()) => next.run(request).await,
                    Err(e) => problem(&e),
                }
            }
        })
    };
    let page = Router::new()
        .route("/", get(page_for_people))
        .route_layer(guarded(Credentials::BearerOrBasic));
    health_routes()
        .merge(api.route_layer(guarded(Credentials::Bearer)))
        .merge(page)
        .fallback(|| async { problem(&ApiError::NotFound("there is nothing at this path".into())) })
        .method_not_allowed_fallback(|| async {
            problem(&ApiError::Invalid("this path takes another method".into()))
        })
        .layer(middleware::from_fn(finish))
        .with_state(node)
}

/// A list; the query string is its filter.
fn list(make: impl Fn(Filter) -> Query + Clone + Send + Sync + 'static) -> MethodRouter<Node> {
    get(
        |State(node): State<Node>, Wanted(filter): Wanted<Filter>| async move {
            json(node.query(make(filter))).await
        },
    )
}

/// Refuses a body that is announced larger than the bound before a byte of it is read.
async fn announced_too_large(request: Request, next: Next) -> Response {
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    match announced {
        Some(length) if length > BODY_LIMIT => problem(&ApiError::TooLarge { limit: BODY_LIMIT }),
        _ => next.run(request).await,
    }
}

/// Refuses what no request may be, and adds what every answer carries.
async fn finish(request: Request, next: Next) -> Response {
    let mut response = match one_host(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(e) => problem(&e),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("x-frame-options", HeaderValue::from_static("DENY"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}

/// The problem document of an error. What failed inside the node goes to the log under the request's number.
pub(super) fn problem(error: &ApiError) -> Response {
    static REQUESTS: AtomicU64 = AtomicU64::new(1);
    let request = format!("{:x}-{}", std::process::id(), REQUESTS.fetch_add(1, Relaxed));
    if let ApiError::Internal(detail) = error {
        tracing::error!(
            event = "admin_request_failed",
            request,
            detail,
            "a request to the admin API failed"
        );
    }
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(Problem::of(error, &request))).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if *error == ApiError::Unauthorized {
        // Lets a browser ask for the token: any user, the token as password; for the page only.
        headers.insert(
            "www-authenticate",
            HeaderValue::from_static("Basic realm=\"sluicegate\", charset=\"UTF-8\""),
        );
    }
    response
}

async fn json<T: Serialize>(answer: Answer<T>) -> Response {
    match answer.await {
        Ok(body) => Json(body).into_response(),
        Err(e) => problem(&e),
    }
}

fn health(health: &Health) -> Response {
    let status = if health.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health)).into_response()
}

async fn metrics(State(node): State<Node>) -> Response {
    match node.metrics().await {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => problem(&e),
    }
}

async fn page_for_people(State(node): State<Node>) -> Response {
    match node.status().await {
        Ok(status) => {
            let nonce = uuid::Uuid::new_v4().simple().to_string();
            let policy = format!(
                "default-src 'none'; style-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            );
            let headers = [
                (CONTENT_TYPE.as_str(), "text/html; charset=utf-8".to_owned()),
                ("content-security-policy", policy),
            ];
            (headers, page::render(&status, &nonce)).into_response()
        }
        Err(e) => problem(&e),
    }
}

async fn partners(State(node): State<Node>) -> Response {
    match node.status().await {
        Ok(status) => Json(status.partners).into_response(),
        Err(e) => problem(&e),
    }
}

async fn test_partner(State(node): State<Node>, Path(name): Path<String>) -> Response {
    json(node.test_partner(name)).await
}

async fn message(State(node): State<Node>, Wanted(filter): Wanted<Filter>) -> Response {
    if filter.ids.len() != 1 {
        return problem(&ApiError::Invalid("one `id` is needed".into()));
    }
    json(node.query(Query::Story { filter })).await
}

async fn query(State(node): State<Node>, Posted(query): Posted<Query>) -> Response {
    json(node.query(query)).await
}

async fn order(State(node): State<Node>, Posted(order): Posted<OrderRequest>) -> Response {
    json(node.order(order)).await
}

async fn send(State(node): State<Node>, Posted(record): Posted<SendRequest>) -> Response {
    json(node.send(record)).await
}

/// The body of a change of the log's level.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: String,
}

async fn log_level(State(node): State<Node>, Posted(wanted): Posted<Level>) -> Response {
    match node.set_log_level(wanted.level) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(e) => problem(&e),
    }
}

async fn export(State(node): State<Node>, Wanted(filter): Wanted<Filter>) -> Response {
    match node.export(filter).await {
        Ok(lines) => {
            // What ends without its mark breaks the answer off, so that a client cannot take a part for the whole.
            let pieces = stream::unfold(Some(lines), |lines| async move {
                let mut lines = lines?;
                match lines.recv().await {
                    Some(Ok(Exported::Line(mut line))) => {
                        line.push('\n');
                        Some((Ok(Bytes::from(line)), Some(lines)))
                    }
                    Some(Ok(Exported::End)) => None,
                    Some(Err(e)) => Some((Err(io::Error::other(e.to_string())), None)),
                    None => Some((Err(io::Error::other("the export was cut off")), None)),
                }
            });
            (
                [(CONTENT_TYPE, "application/x-ndjson")],
                Body::from_stream(pieces),
            )
                .into_response()
        }
        Err(e) => problem(&e),
    }
}

/// A place for one more upload, on one port.
type Uploads = Arc<Semaphore>;

async fn import(
    State(node): State<Node>,
    Extension(uploads): Extension<Uploads>,
    Wanted(wanted): Wanted<ImportRequest>,
    request: Request,
) -> Response {
    let Ok(_place) = uploads.try_acquire() else {
        return problem(&ApiError::Unavailable(format!(
            "{UPLOADS} uploads are under way; try again when one of them has ended"
        )));
    };
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let (sender, upload) = Upload::channel();
    let body = request.into_body().into_data_stream();
    // In a task of its own: the import answers once it has seen the end of the file.
    let feeding = tokio::spawn(feed(body, sender, announced));
    let answer = json(node.import(wanted, upload)).await;
    feeding.abort();
    answer
}

/// Hands a body over. Only one that came to its end, with as many bytes as were announced, is finished.
async fn feed(
    mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    to: UploadSender,
    announced: Option<u64>,
) {
    let aborted = |text: String| io::Error::new(io::ErrorKind::ConnectionAborted, text);
    let mut bytes = 0;
    loop {
        let Ok(next) = tokio::time::timeout(UPLOAD_SILENCE, body.next()).await else {
            let text = format!(
                "nothing came for {} seconds, after {bytes} bytes",
                UPLOAD_SILENCE.as_secs()
            );
            return to.fail(io::Error::new(io::ErrorKind::TimedOut, text)).await;
        };
        let Some(piece) = next else { break };
        match piece {
            Ok(piece) => {
                bytes += piece.len() as u64;
                if !to.send(piece).await {
                    return;
                }
            }
            Err(e) => return to.fail(aborted(e.to_string())).await,
        }
    }
    match announced {
        Some(announced) if announced != bytes => {
            let text = format!("{bytes} bytes came where {announced} were announced");
            to.fail(aborted(text)).await;
        }
        _ => to.finish().await,
    }
}

#[cfg(test)]
mod tests;
