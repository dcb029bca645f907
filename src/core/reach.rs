//! Which addresses requests may go to. Pure: the address is known, nothing is connected yet.
//!
//! A URL can come from a record, and so from whoever wrote the record. Two things must not follow from that: the
//! node's own ports obey requests from this machine (and one that pauses a partner looks like any other request),
//! and machines in a cloud trust whoever reaches their link-local addresses (those hand out credentials). What is
//! decided here is an address and not a spelling: names, `[::ffff:127.0.0.1]`, `0.0.0.0`, `2130706433` have all
//! become one before.

use crate::config::model::Reach;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why no request goes to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Admin API, probes: whatever the URL comes from.
    #[error("it is a port of this node")]
    OwnPort,
    /// Where clouds keep credentials, or no host at all.
    #[error(
        "it is link-local or reserved, and the URL comes from a record (set url_reach = \"any\" if it must be)"
    )]
    LinkLocal,
    /// Loopback and private networks, where the partner's records may name public hosts only.
    #[error("it is not a public address, and the URL comes from a record (url_reach = \"public\")")]
    Private,
}

/// What a partner's requests may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The node's own listeners.
    pub own: Vec<SocketAddr>,
    /// Set where records name the host: how far they reach.
    pub from_record: Option<Reach>,
}

impl Bounds {
    /// Whether a request may go there. `is_mine`: whether an address is one of this machine's; asked only where the
    /// port is that of a listener.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, address: SocketAddr, is_mine: impl Fn(IpAddr) -> bool) -> Result<(), Refused> {
        let ip = plain(address.ip());
        let hits = |own: &SocketAddr| {
            let listens = plain(own.ip());
            own.port() == address.port()
                // A listener on an unspecified address hears on all; a request to one goes to loopback.
                && (ip == listens || ((listens.is_unspecified() || ip.is_unspecified() || ip.is_loopback()) && is_mine(ip)))
        };
        if self.own.iter().any(hits) {
            return Err(Refused::OwnPort);
        }
        match self.from_record {
            None | Some(Reach::Any) => Ok(()),
            Some(_) if is_reserved(ip) => Err(Refused::LinkLocal),
            Some(Reach::Public) if is_private(ip) => Err(Refused::Private),
            Some(_) => Ok(()),
        }
    }
}

/// The IPv4 address that an IPv6 address stands for, where it does (RFC 4291, 2.5.5; NAT64, RFC 6052; 6to4).
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => IpAddr::V6(v6),
    }
}

/// Link-local, multicast, broadcast, and the addresses at which clouds serve what their machines are trusted with.
fn is_reserved(ip: IpAddr) -> bool {
    const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
    const METADATA_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(ip) => {
            ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
                || (ip.octets()[0] == 0 && !ip.is_unspecified())
                || METADATA.contains(&ip)
        }
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast() || ip == METADATA_6,
    }
}

fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_unspecified() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local(),
    }
}

/// What a URL template says of its host, whatever the record: scheme and authority, with the slash behind them. None
/// where a placeholder stands before the authority's end.
pub fn host_of_template(template: &str) -> Option<&str> {
    let text = template.trim_start();
    let placeholder = ["{{", "{%"].iter().filter_map(|open| text.find(open)).min();
    let authority = text.find("://")? + 3;
    // A path ends the authority for good. A question mark or a hash too, but what follows `http://host?` is rare
    // enough to be treated with care.
    match (text[authority..].find('/'), placeholder) {
        (Some(slash), Some(at)) if authority + slash > at => None,
        (Some(slash), _) => Some(&text[..=authority + slash]),
        (None, Some(_)) => None,
        (None, None) => Some(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(own: &str, from_record: Option<Reach>) -> Bounds {
        Bounds {
            own: vec![own.parse().unwrap()],
            from_record,
        }
    }

    fn check(bounds: &Bounds, address: &str) -> Result<(), Refused> {
        let mine = [
            "127.0.0.1",
            "127.1.2.3",
            "10.0.0.7",
            "::1",
            "fd00::7",
            "0.0.0.0",
            "::",
        ]
        .map(|a| a.parse::<IpAddr>().unwrap());
        bounds.check(address.parse().unwrap(), |ip| mine.contains(&ip))
    }

    #[test]
    fn the_nodes_own_ports_are_never_reached_however_they_are_spelled() {
        for from_record in [None, Some(Reach::Any), Some(Reach::Usual)] {
            let loopback = bounds("127.0.0.1:7070", from_record);
            for address in [
                "127.0.0.1:7070",
                "[::ffff:127.0.0.1]:7070",
                "[::127.0.0.1]:7070",
                "0.0.0.0:7070",
                "[::]:7070",
                "127.1.2.3:7070",
            ] {
                assert_eq!(check(&loopback, address), Err(Refused::OwnPort), "{address}");
            }
            for address in ["127.0.0.1:7071", "10.0.0.7:7070", "192.0.2.1:7070"] {
                assert_eq!(check(&loopback, address), Ok(()), "{address}");
            }
            let everywhere = bounds("0.0.0.0:7070", from_record);
            for address in ["127.0.0.1:7070", "10.0.0.7:7070", "[::1]:7070", "[fd00::7]:7070"] {
                assert_eq!(check(&everywhere, address), Err(Refused::OwnPort), "{address}");
            }
            assert_eq!(check(&everywhere, "192.0.2.1:7070"), Ok(()));
        }
    }

    #[test]
    fn records_reach_no_link_local_address_and_no_private_one_where_that_is_said() {
        let usual = bounds("127.0.0.1:1", Some(Reach::Usual));
        let public = bounds("127.0.0.1:1", Some(Reach::Public));
        for address in [
            "169.254.169.254:80",
            "[fe80::1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[fd00:ec2::254]:80",
            "100.100.100.200:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "0.1.2.3:80",
        ] {
            assert_eq!(check(&usual, address), Err(Refused::LinkLocal), "{address}");
            assert_eq!(check(&public, address), Err(Refused::LinkLocal), "{address}");
            assert_eq!(
                check(&bounds("127.0.0.1:1", Some(Reach::Any)), address),
                Ok(()),
                "{address}"
            );
            assert_eq!(check(&bounds("127.0.0.1:1", None), address), Ok(()), "{address}");
        }
        for address in [
            "127.0.0.1:80",
            "10.1.2.3:80",
            "192.168.0.1:80",
            "[::1]:80",
            "[fd12::1]:80",
            "100.64.0.1:80",
            "0.0.0.0:80",
        ] {
            assert_eq!(check(&usual, address), Ok(()), "{address}");
            assert_eq!(check(&public, address), Err(Refused::Private), "{address}");
        }
        for address in ["93.184.216.34:80", "[2606:2800::1]:443"] {
            assert_eq!(check(&public, address), Ok(()), "{address}");
        }
    }

    #[test]
    fn who_names_the_host() {
        for (template, host) in [
            ("http://a.example/hook", Some("http://a.example/")),
            ("http://a.example", Some("http://a.example")),
            (" http://a.example/{{ value.u }}", Some("http://a.example/")),
            (
                "https://a.example:8443/x?{{ key }}",
                Some("https://a.example:8443/"),
            ),
            ("{{ value }}", None),
            ("{% if x %}http://a/{% endif %}", None),
            ("http://{{ value.host }}/x", None),
            ("http://a.example{{ value.u }}", None),
            ("http://a.example:{{ value.port }}/", None),
            ("http://a.example?{{ value.u }}", None),
        ] {
            assert_eq!(host_of_template(template), host, "{template}");
        }
    }
}
