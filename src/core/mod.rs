//! Every decision of Sluicegate, as plain structs and functions: no actix, no I/O, time as an argument.
//!
//! | module | decides |
//! |---|---|
//! | [`types`], [`record`] | the vocabulary: IDs, times, records |
//! | [`identity`], [`mod@pointer`] | what ID, key and partition a record has |
//! | [`message_id`], [`readable_id`], [`resolve`] | the hash of an ID, its readable form; what a record is to a route |
//! | [`ranges`], [`key_queues`] | which offsets are finished; which record of which key goes next |
//! | [`limiter`], [`turnstile`] | when a request may start, and whose turn it is (I5) |
//! | [`backoff`], [`breaker`], [`flood`] | when to try again, when to stop trying |
//! | [`hosts`] | the same for each host, where the URL comes from the record |
//! | [`waits`] | in words: what a partner's messages wait for, and which setting helps |
//! | [`url_text`] | what a template's values may do in a URL |
//! | [`verdict`], [`expr`], [`redirect`] | what an answer means |
//! | [`stray`] | whose answer it is |
//! | [`reach`] | which addresses a request may go to |
//! | [`doubt`] | what becomes of an attempt without a known outcome (I3) |
//! | [`mask`], [`shown`] | what must not be shown (I9); how keys and IDs are |
//! | [`ledger`] | the ledger's entries and their fold: what is known of every message |

pub mod backoff;
pub mod breaker;
pub mod doubt;
pub mod expr;
pub mod flood;
pub mod hosts;
pub mod identity;
pub mod in_full;
pub mod key_queues;
pub mod ledger;
pub mod limiter;
pub mod mask;
pub mod message_id;
pub mod pointer;
pub mod ranges;
pub mod reach;
pub mod readable_id;
pub mod record;
pub mod redirect;
pub mod resolve;
pub mod restart;
pub mod shown;
pub mod stray;
pub mod turnstile;
pub mod types;
pub mod url_text;
pub mod verdict;
pub mod waits;
