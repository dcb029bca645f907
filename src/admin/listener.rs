//! One port: takes connections, bounds them, and closes them in order when the node stops.
//!
//! Callers that say nothing must not lock the others out. A connection is *idle* while no request of it is under way.
//! A head must be there within [`HEAD`]. When all places are taken, the connection that has been idle longest gives
//! way to the new one; then one whose caller has not read its answer for [`STALLED`]. Where all places are busy with
//! requests, a few more connections are served with probes only: health and metrics are answered as long as the
//! process has a thread that runs.
//!
//! At the node's stop no new connection is taken, idle ones close at once, and requests under way get [`GRACE`].

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// A caller has so long to send a whole head, also on a connection that was used before.
const HEAD: Duration = Duration::from_secs(30);
/// A caller that has not read its answer for so long may have to give way.
const STALLED: Duration = Duration::from_secs(10);
/// How long requests under way may take to end when the node stops.
const GRACE: Duration = Duration::from_secs(2);

/// How many connections a port serves at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// With everything that the port offers.
    pub all: usize,
    /// Beyond that, for probes only.
    pub probes: usize,
}

/// Paths that are answered however busy the port is.
fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    /// No request is under way, since then.
    Idle(Instant),
    /// So many requests are under way (a pipelining caller has more than one).
    Busy(u32),
}

/// A connection's place.
#[derive(Debug)]
struct Place {
    probes_only: bool,
    doing: Mutex<Doing>,
    /// The caller does not read its answer, since then.
    stalled: Mutex<Option<Instant>>,
    give_way: Notify,
}

impl Place {
    fn new(probes_only: bool, now: Instant) -> Self {
        Self {
            probes_only,
            doing: Mutex::new(Doing::Idle(now)),
            stalled: Mutex::new(None),
            give_way: Notify::new(),
        }
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        let mut doing = self.doing.lock();
        *doing = match *doing {
            Doing::Idle(_) => Doing::Busy(1),
            Doing::Busy(n) => Doing::Busy(n + 1),
        };
        UnderWay(self.clone())
    }
}

/// A request from its head to the last byte of its answer.
struct UnderWay(Arc<Place>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut doing = self.0.doing.lock();
        *doing = match *doing {
            Doing::Busy(n) if n > 1 => Doing::Busy(n - 1),
            _ => Doing::Idle(Instant::now()),
        };
    }
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Admission {
    /// There is room.
    Served,
    /// This one closes for it.
    InsteadOf(u64),
    /// All others are busy: only probes.
    ProbesOnly,
    /// Closed at once.
    Refused,
}

/// Decides about a new connection. Pure.
fn admit(present: &[(u64, bool, Doing, Option<Instant>)], places: Places, now: Instant) -> Admission {
    let gives_way = |probes_only: bool| {
        let here = || present.iter().filter(move |(_, p, ..)| *p == probes_only);
        let idle = here().filter_map(|(id, _, doing, _)| match doing {
            Doing::Idle(since) => Some((*since, *id)),
            Doing::Busy(_) => None,
        });
        let stalled = here().filter_map(|(id, _, _, stalled)| {
            let since = (*stalled)?;
            (now.saturating_duration_since(since) > STALLED).then_some((since, *id))
        });
        idle.min().or_else(|| stalled.min()).map(|(_, id)| id)
    };
    let count = |probes_only: bool| present.iter().filter(|(_, p, ..)| *p == probes_only).count();
    if count(false) < places.all {
        return Admission::Served;
    }
    if let Some(id) = gives_way(false) {
        return Admission::InsteadOf(id);
    }
    if count(true) >= places.probes && gives_way(true).is_none() {
        return Admission::Refused;
    }
    Admission::ProbesOnly
}

/// The connections of a port.
#[derive(Debug, Default)]
struct Present {
    next: u64,
    places: HashMap<u64, Arc<Place>>,
}

impl Present {
    /// Gives a new connection its place, if it gets one.
    fn take(&mut self, places: Places) -> Option<(u64, Arc<Place>)> {
        let now = Instant::now();
        let list = |present: &Self| {
            let all = present.places.iter();
            all.map(|(id, p)| (*id, p.probes_only, *p.doing.lock(), *p.stalled.lock()))
                .collect::<Vec<_>>()
        };
        let probes_only = match admit(&list(self), places, now) {
            Admission::Refused => return None,
            Admission::Served => false,
            Admission::InsteadOf(id) => {
                self.close(id);
                false
            }
            Admission::ProbesOnly => {
                let probes: Vec<_> = list(self).into_iter().filter(|(_, p, ..)| *p).collect();
                if probes.len() >= places.probes {
                    let alone: Vec<_> = probes.iter().map(|(id, _, d, s)| (*id, false, *d, *s)).collect();
                    let none = Places { all: 0, probes: 0 };
                    let Admission::InsteadOf(id) = admit(&alone, none, now) else {
                        return None;
                    };
                    self.close(id);
                }
                true
            }
        };
        let place = Arc::new(Place::new(probes_only, now));
        self.next += 1;
        self.places.insert(self.next, place.clone());
        Some((self.next, place))
    }

    fn close(&mut self, id: u64) {
        if let Some(place) = self.places.remove(&id) {
            place.give_way.notify_one();
        }
    }
}

/// Serves a port until `stop` changes, and ends its connections.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    busy: fn() -> Response,
    places: Places,
    mut stop: watch::Receiver<bool>,
) {
    let present = Arc::new(Mutex::new(Present::default()));
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // Out of descriptors, or a caller that is gone already: neither ends the server.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some((id, place)) = present.lock().take(places) else {
            continue;
        };
        let (router, present, stop) = (router.clone(), present.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, place, router, busy, stop).await;
            present.lock().places.remove(&id);
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What does not end by then is dropped, and says so to whoever waits for it.
    let _ = tokio::time::timeout(GRACE, ended).await;
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    place: Arc<Place>,
    router: Router,
    busy: fn() -> Response,
    mut stop: watch::Receiver<bool>,
) {
    let io = TokioIo::new(Watched {
        stream,
        place: place.clone(),
    });
    let answering = place.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let under_way = answering.begin();
        let refused = answering.probes_only && !is_probe(request.uri().path());
        let router = router.clone();
        async move {
            let answer = match refused {
                true => busy(),
                false => router.call(request).await?,
            };
            // The request is under way until its answer is sent.
            Ok::<_, Infallible>(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _ = &under_way;
                    frame
                }))
            }))
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(io, service)
    );
    let mut stopping = false;
    loop {
        tokio::select! {
            // An error means that the caller has left, or says nothing that can be understood.
            _ = connection.as_mut() => return,
            () = place.give_way.notified() => return,
            _ = stop.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A stream that notes whether its caller reads.
struct Watched {
    stream: TcpStream,
    place: Arc<Place>,
}

impl Watched {
    fn note<T>(&self, poll: Poll<T>) -> Poll<T> {
        let mut stalled = self.place.stalled.lock();
        match &poll {
            Poll::Ready(_) => *stalled = None,
            Poll::Pending => _ = stalled.get_or_insert_with(Instant::now),
        }
        poll
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(poll)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_gives_way_then_the_one_that_does_not_read_then_only_probes_are_served() {
        let start = Instant::now();
        let now = start + Duration::from_secs(60);
        let places = Places { all: 3, probes: 1 };
        let busy = |id| (id, false, Doing::Busy(1), None);
        let idle = |id, s| (id, false, Doing::Idle(start + Duration::from_secs(s)), None);
        assert_eq!(admit(&[busy(1), busy(2)], places, now), Admission::Served);
        assert_eq!(
            admit(&[idle(1, 20), busy(2), idle(3, 10)], places, now),
            Admission::InsteadOf(3)
        );
        let reads_not = |id, s| (id, false, Doing::Busy(1), Some(start + Duration::from_secs(s)));
        assert_eq!(
            admit(&[busy(1), reads_not(2, 40), reads_not(3, 55)], places, now),
            Admission::InsteadOf(2)
        );
        let full = [busy(1), busy(2), reads_not(3, 55)];
        assert_eq!(admit(&full, places, now), Admission::ProbesOnly);
        let probe = |doing| [&full[..], &[(4, true, doing, None)]].concat();
        assert_eq!(admit(&probe(Doing::Busy(1)), places, now), Admission::Refused);
        assert_eq!(
            admit(&probe(Doing::Idle(start)), places, now),
            Admission::ProbesOnly
        );
    }
}
