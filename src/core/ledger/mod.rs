//! The ledger's entries ([`entry`]), their byte form ([`codec`]) and their fold ([`fold`]): from the first entry
//! of a lane to what is known of every message. Pure.

pub mod codec;
pub mod entry;
pub mod fold;
pub mod passed;
pub mod retention;
pub(crate) mod wire;
