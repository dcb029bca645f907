//! From an origin to a connection that stands: names, addresses, proxies, TLS.
//!
//! Whether a request may go to an address is decided here, between resolving and connecting
//! ([`crate::core::reach`]): nothing that can be written in a URL gets around it, and a name that resolves to
//! something else the second time is asked once only. Behind a proxy that resolves names itself, that proxy decides.

use super::connection::{Io, Socket};
use super::error::SinkError;
use super::origin::{Origin, Target};
use crate::core::mask::percent_decode;
use crate::core::reach::{self, Bounds};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::{Ready, ready};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

/// How long one address is given before the next one is tried beside it (RFC 8305 recommends 250 ms).
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// Why there is no connection. Nothing was written, so it is never a doubt.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no address for {host}")]
    Dns { host: String, source: std::io::Error },
    #[error("{host} has no address")]
    NoAddress { host: String },
    #[error("{address}")]
    Tcp {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// The only one that is the message's own failure: another message's URL may be fine.
    #[error("{host}, {address}: {why}")]
    Forbidden {
        host: String,
        address: SocketAddr,
        why: reach::Refused,
    },
    #[error("tls: {0}")]
    Tls(std::io::Error),
    #[error("tls: {0} is not a name a certificate can be checked against")]
    Name(String),
    #[error("the proxy made no connection: {0}")]
    Proxy(String),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("http2: {0}")]
    Http2(h2::Error),
    /// Of the connect that this request waited for.
    #[error("{0}")]
    Beside(Arc<str>),
    #[error("more than {0} hosts at once")]
    Origins(usize),
}

/// What stands between this node and its partner.
#[derive(Debug)]
pub(super) struct Proxy {
    kind: Kind,
    origin: Origin,
    /// `proxy-authorization`, where its URL names a user.
    pub(super) auth: Option<HeaderValue>,
    user: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `http://`, `https://`
    Http,
    /// `socks5://` (names are resolved here) and `socks5h://` (there).
    Socks { names_here: bool },
}

impl Proxy {
    /// Reads the proxy's URL.
    pub(super) fn parse(text: &str) -> Result<Self, SinkError> {
        if let Ok(target) = Target::parse(text) {
            return Ok(Self {
                kind: Kind::Http,
                origin: (*target.origin).clone(),
                auth: target.basic,
                user: None,
            });
        }
        let url = url::Url::parse(text).map_err(|_| SinkError::Proxy)?;
        let names_here = match url.scheme() {
            "socks5" => true,
            "socks5h" => false,
            _ => return Err(SinkError::Proxy),
        };
        let host = url
            .host_str()
            .ok_or(SinkError::Proxy)?
            .trim_matches(['[', ']'])
            .to_owned();
        let password = url.password().unwrap_or_default();
        Ok(Self {
            kind: Kind::Socks { names_here },
            origin: Origin {
                https: false,
                address: host.parse().ok(),
                port: url.port().unwrap_or(1080),
                host,
            },
            auth: None,
            user: (!url.username().is_empty()).then(|| {
                let text = |part| percent_decode(part).into_owned();
                (text(url.username()), text(password))
            }),
        })
    }
}

/// Looks names up.
pub(super) enum Resolver {
    /// As this machine does.
    System,
    /// As a test says.
    #[cfg(test)]
    Given(GivenNames),
}

/// The addresses of a name.
#[cfg(test)]
pub(super) type GivenNames = std::rc::Rc<dyn Fn(&str) -> Vec<IpAddr>>;

impl Resolver {
    async fn look_up(&self, host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            #[cfg(test)]
            Self::Given(look_up) => Ok(look_up(host)
                .into_iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect()),
        }
    }
}

/// Makes connections for one partner.
pub(super) struct Dialer {
    pub(super) resolver: Resolver,
    pub(super) tls: Arc<ClientConfig>,
    /// To a proxy: nothing is negotiated with it.
    pub(super) tls_to_proxy: Arc<ClientConfig>,
    pub(super) proxy: Option<Proxy>,
    pub(super) bounds: Bounds,
}

impl Dialer {
    /// The proxy to which a request for this origin is told with its whole URL.
    pub(super) fn told_to(&self, origin: &Origin) -> Option<&Proxy> {
        self.proxy
            .as_ref()
            .filter(|proxy| proxy.kind == Kind::Http && !origin.https)
    }

    /// A connection over which HTTP can be spoken.
    pub(super) async fn dial(&self, origin: &Origin) -> Result<Io, ConnectError> {
        let Some(proxy) = &self.proxy else {
            let addresses = self.addresses(origin, Some(&self.bounds)).await?;
            let socket = Socket::new(tcp(addresses, &origin.host).await?);
            return self.secured(origin, socket).await;
        };
        let there = self.origin_behind(origin, proxy).await?;
        let addresses = self.addresses(&proxy.origin, None).await?;
        let socket = Socket::new(tcp(addresses, &proxy.origin.host).await?);
        match proxy.kind {
            Kind::Socks { .. } => {
                let uri = uri_of("socks5", &proxy.origin)?;
                let mut socks = SocksV5::new(uri, Given(Some(TokioIo::new(socket))));
                if let Some((user, password)) = &proxy.user {
                    socks = socks.with_auth(user.clone(), password.clone());
                }
                let through = socks
                    .call(there)
                    .await
                    .map_err(|e| ConnectError::Proxy(e.to_string()))?;
                self.secured(origin, through.into_inner()).await
            }
            Kind::Http if proxy.origin.https => {
                let socket = Box::new(tls(&self.tls_to_proxy, &proxy.origin.host, socket).await?);
                if !origin.https {
                    return Ok(Io::Tls(socket));
                }
                let through = tunnel(proxy, there, socket).await?;
                let nested = tls(&self.tls, &origin.host, through).await?;
                Ok(Io::Nested(Box::new(nested)))
            }
            Kind::Http if origin.https => self.secured(origin, tunnel(proxy, there, socket).await?).await,
            Kind::Http => Ok(Io::Plain(socket)),
        }
    }

    async fn secured(&self, origin: &Origin, socket: Socket) -> Result<Io, ConnectError> {
        if !origin.https {
            return Ok(Io::Plain(socket));
        }
        Ok(Io::Tls(Box::new(tls(&self.tls, &origin.host, socket).await?)))
    }

    /// What a proxy is told to connect to.
    async fn origin_behind(&self, origin: &Origin, proxy: &Proxy) -> Result<Uri, ConnectError> {
        let bounds = &self.bounds;
        let names_here = proxy.kind == Kind::Socks { names_here: true };
        // A name that the proxy resolves is resolved here too where its port is one of this node's: the proxy may run
        // on this machine.
        let suspect = origin.address.is_some() || bounds.own.iter().any(|own| own.port() == origin.port);
        let mut there = origin.clone();
        if names_here || suspect {
            match self.addresses(origin, Some(bounds)).await {
                Ok(found) if names_here => there.address = found.first().map(SocketAddr::ip),
                Ok(_) => {}
                Err(e) if names_here || matches!(e, ConnectError::Forbidden { .. }) => return Err(e),
                Err(_) => {}
            }
        }
        uri_of(if origin.https { "https" } else { "http" }, &there)
    }

    /// The addresses of an origin to which a request may go.
    async fn addresses(
        &self,
        origin: &Origin,
        bounds: Option<&Bounds>,
    ) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut found: Vec<SocketAddr> = match origin.address {
            Some(ip) => vec![SocketAddr::new(ip, origin.port)],
            None => {
                let found = self.resolver.look_up(&origin.host, origin.port).await;
                found.map_err(|source| ConnectError::Dns {
                    host: origin.host.clone(),
                    source,
                })?
            }
        };
        let mut forbidden = None;
        if let Some(bounds) = bounds {
            found.retain(|address| match bounds.check(*address, is_mine) {
                Ok(()) => true,
                Err(why) => {
                    forbidden = Some((*address, why));
                    false
                }
            });
        }
        match (found.is_empty(), forbidden) {
            (true, Some((address, why))) => Err(ConnectError::Forbidden {
                host: origin.host.clone(),
                address,
                why,
            }),
            _ => Ok(found),
        }
    }
}

async fn tls<S>(config: &Arc<ClientConfig>, host: &str, socket: S) -> Result<TlsStream<S>, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(host.to_owned()).map_err(|_| ConnectError::Name(host.to_owned()))?;
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, socket);
    connecting.await.map_err(ConnectError::Tls)
}

async fn tunnel<S>(proxy: &Proxy, there: Uri, socket: S) -> Result<S, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut tunnel = Tunnel::new(uri_of("http", &proxy.origin)?, Given(Some(TokioIo::new(socket))));
    if let Some(auth) = &proxy.auth {
        tunnel = tunnel.with_auth(auth.clone());
    }
    let through = tunnel.call(there).await;
    through
        .map(TokioIo::into_inner)
        .map_err(|e| ConnectError::Proxy(e.to_string()))
}

/// Gives a connection that stands to those who would have it made.
struct Given<S>(Option<TokioIo<S>>);

impl<S> Service<Uri> for Given<S> {
    type Response = TokioIo<S>;
    type Error = std::io::Error;
    type Future = Ready<Result<TokioIo<S>, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .ok_or_else(|| std::io::ErrorKind::NotConnected.into()),
        )
    }
}

fn uri_of(scheme: &str, origin: &Origin) -> Result<Uri, ConnectError> {
    let authority = match origin.address {
        Some(IpAddr::V6(ip)) => format!("[{ip}]:{}", origin.port),
        Some(IpAddr::V4(ip)) => format!("{ip}:{}", origin.port),
        None => format!("{}:{}", origin.host, origin.port),
    };
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query("/")
        .build()
        .map_err(|e| ConnectError::Proxy(e.to_string()))
}

/// Whether an address is this machine's: only then a socket can be bound to it.
fn is_mine(ip: IpAddr) -> bool {
    std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// A TCP connection to the first address that answers; the next address is tried when one fails or is slow.
async fn tcp(addresses: Vec<SocketAddr>, host: &str) -> Result<TcpStream, ConnectError> {
    let no_address = || ConnectError::NoAddress {
        host: host.to_owned(),
    };
    let mut waiting = in_turns(addresses).into_iter();
    let one = |address: SocketAddr| async move {
        let stream = TcpStream::connect(address).await;
        stream
            .and_then(|s| s.set_nodelay(true).map(|()| s))
            .map_err(|source| ConnectError::Tcp { address, source })
    };
    let mut trying = FuturesUnordered::new();
    trying.push(one(waiting.next().ok_or_else(no_address)?));
    loop {
        let result = if waiting.len() == 0 {
            trying.next().await
        } else {
            match tokio::time::timeout(NEXT_ADDRESS_AFTER, trying.next()).await {
                Ok(result) => result,
                Err(_slow) => {
                    trying.extend(waiting.next().map(one));
                    continue;
                }
            }
        };
        match result {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(e)) => match waiting.next() {
                Some(next) => trying.push(one(next)),
                None if trying.is_empty() => return Err(e),
                None => {}
            },
            None => return Err(no_address()),
        }
    }
}

/// IPv6 and IPv4 by turns, the resolver's order kept within each.
fn in_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (a, b): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|x| x.is_ipv6() == first_is_v6);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut out = Vec::with_capacity(a.len() + b.len());
    while a.len() + b.len() > 0 {
        out.extend(a.next());
        out.extend(b.next());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_turns() {
        let parse = |s: &str| s.parse::<SocketAddr>().unwrap();
        let v = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "2.2.2.2:1", "3.3.3.3:1"]
            .map(parse)
            .to_vec();
        let want = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "3.3.3.3:1"]
            .map(parse)
            .to_vec();
        assert_eq!(in_turns(v), want);
    }

    #[test]
    fn proxies() {
        let http = Proxy::parse("http://user:p%40ss@proxy.example:3128").unwrap();
        assert_eq!((http.kind, http.origin.port), (Kind::Http, 3128));
        assert_eq!(http.auth.unwrap(), "Basic dXNlcjpwQHNz");
        let socks = Proxy::parse("socks5://u:p%40@[::1]").unwrap();
        assert_eq!(socks.kind, Kind::Socks { names_here: true });
        assert_eq!((socks.origin.port, socks.origin.host.as_str()), (1080, "::1"));
        assert_eq!(socks.user, Some(("u".into(), "p@".into())));
        assert_eq!(
            Proxy::parse("socks5h://proxy.example:9").unwrap().kind,
            Kind::Socks { names_here: false }
        );
        for bad in ["ftp://x", "proxy.example:3128", ""] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
    }
}
