//! Whose answer is it? An answer that says "not taken", on a connection that was used before, may be one that nobody
//! asked for: a second answer to the request before, or an error page of a server that was about to close.
//!
//! HTTP/1.1 numbers neither requests nor answers, so such a page reads like the answer to the request that was just
//! written. To believe it would make a dead letter of a message that the partner may take (I3). What tells the two
//! apart lies below HTTP:
//!
//! | seen | why it is not this request's answer |
//! |---|---|
//! | no byte of the request is acknowledged | every segment acknowledges all that its sender has got: when the answer left, the request had not arrived |
//! | a reset behind it, and the request is small | the server closed with the request unread in its socket |
//! | another answer behind it | one of the two is not this request's |
//!
//! An answer that none of this speaks against is believed. Some of it comes later than the answer, so the caller
//! [waits](Whose::Wait) for a while, without a place at the partner.
//!
//! Neighbours: the HTTP sink. Nothing here outlives an exchange.

use std::time::Duration;

/// What followed an answer, as far as it is known now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Nothing yet.
    Nothing,
    /// The connection's orderly end.
    End,
    /// A reset.
    Reset,
    /// More bytes.
    More,
}

/// What is known about an answer that says "not taken", on a connection that was used before.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its status.
    pub status: u16,
    /// The partner's machine had acknowledged no byte of the request when the answer was read.
    pub unacknowledged: bool,
    /// What followed it.
    pub behind: Behind,
    /// The answer ends the connection.
    pub closes: bool,
    /// Bytes of the request, TLS included.
    pub written: u64,
    /// Time from the end of the answer before to the end of this one.
    pub since_last: Duration,
    /// The longest that an answer has taken on this connection.
    pub slowest: Duration,
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This request's.
    Its,
    /// Nobody's, or not known whose; why.
    NotKnown(Why),
    /// This request's, unless something follows within this time.
    Wait(Duration),
}

/// Why it is not known whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was sent before the request had arrived.
    Crossed,
    /// The server closed without reading the request.
    Unread,
    /// Another answer followed.
    Second,
}

impl Why {
    /// In words, behind the status.
    pub fn words(self) -> &'static str {
        match self {
            Self::Crossed => "and it was sent before this request had arrived: it answers none",
            Self::Unread => {
                "and the connection was reset with this request unread: whether it answers this one is not known"
            }
            Self::Second => {
                "and another answer followed that nobody had asked for: which is this request's is not known"
            }
        }
    }
}

/// A server reads its socket in pieces of some KiB. A request up to this size it has read whole when it has read any of
/// it, so that a reset shows that it has read nothing.
const READ_WHOLE: u64 = 4_096;
/// How long something is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A server that answers twice does so within this time. Later strays come from timers, and close the connection.
    pub twice_within: Duration,
    /// Least wait for what follows an answer.
    pub least: Duration,
    /// Longest wait for it.
    pub most: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            twice_within: Duration::from_millis(20),
            least: Duration::from_millis(2),
            most: Duration::from_millis(250),
        }
    }
}

/// Whose answer it is, by what is known now.
pub fn whose(seen: &Seen, patience: &Patience) -> Whose {
    if seen.unacknowledged {
        return Whose::NotKnown(Why::Crossed);
    }
    // The request's own size is the reason: it is refused unread.
    let about_size = matches!(seen.status, 413 | 414 | 431);
    match seen.behind {
        Behind::More => Whose::NotKnown(Why::Second),
        Behind::Reset if seen.written <= READ_WHOLE && !about_size => Whose::NotKnown(Why::Unread),
        Behind::Reset | Behind::End => Whose::Its,
        Behind::Nothing if !seen.closes && seen.since_last > patience.twice_within => Whose::Its,
        // This request's own answer would take about as long as others did.
        Behind::Nothing => Whose::Wait((seen.slowest * 2).clamp(patience.least, patience.most)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_http_tells_whose_answer_it_is() {
        let ms = Duration::from_millis;
        let usual = Seen {
            status: 400,
            unacknowledged: false,
            behind: Behind::Nothing,
            closes: false,
            written: 300,
            since_last: ms(1),
            slowest: ms(1),
        };
        for (seen, wanted) in [
            (usual, Whose::Wait(ms(2))),
            (
                Seen {
                    slowest: ms(30),
                    ..usual
                },
                Whose::Wait(ms(60)),
            ),
            (
                Seen {
                    slowest: ms(9_000),
                    ..usual
                },
                Whose::Wait(ms(250)),
            ),
            (
                Seen {
                    since_last: ms(21),
                    ..usual
                },
                Whose::Its,
            ),
            // An idle server's timer: however long the connection was idle.
            (
                Seen {
                    since_last: ms(60_000),
                    closes: true,
                    ..usual
                },
                Whose::Wait(ms(2)),
            ),
            (
                Seen {
                    behind: Behind::End,
                    closes: true,
                    ..usual
                },
                Whose::Its,
            ),
            (
                Seen {
                    behind: Behind::Reset,
                    closes: true,
                    ..usual
                },
                Whose::NotKnown(Why::Unread),
            ),
            (
                Seen {
                    behind: Behind::Reset,
                    ..usual
                },
                Whose::NotKnown(Why::Unread),
            ),
            (
                Seen {
                    behind: Behind::Reset,
                    written: 5_000,
                    ..usual
                },
                Whose::Its,
            ),
            (
                Seen {
                    behind: Behind::Reset,
                    status: 413,
                    ..usual
                },
                Whose::Its,
            ),
            (
                Seen {
                    behind: Behind::Reset,
                    status: 431,
                    ..usual
                },
                Whose::Its,
            ),
            (
                Seen {
                    behind: Behind::More,
                    since_last: ms(500),
                    ..usual
                },
                Whose::NotKnown(Why::Second),
            ),
            (
                Seen {
                    behind: Behind::End,
                    unacknowledged: true,
                    ..usual
                },
                Whose::NotKnown(Why::Crossed),
            ),
            (
                Seen {
                    status: 413,
                    unacknowledged: true,
                    ..usual
                },
                Whose::NotKnown(Why::Crossed),
            ),
        ] {
            assert_eq!(whose(&seen, &Patience::default()), wanted, "{seen:?}");
        }
    }
}
