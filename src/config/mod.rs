//! Configuration: raw text, environment and several files become one typed value ([`model`]), checked once.
//! Only this folder (and `main`) reads files of settings and the environment.
//!
//! ```text
//! files ─┐ tree: layers, merged by the config crate, every value with file and line
//! env ───┴─► read: typed values by serde, every mistake gathered
//!                └─► check: references, contradictions, bounds of the machine ─► Loaded, or all findings
//! ```
//!
//! A key is written once, as a field of its section in `node`, `limits`, `partner`, `topic` or `secrets`: type and
//! [kind](kinds) say how it is read and printed, `Default` has its default, the doc comment is its text in the manual.
//! [`pages`] prints `docs/configuration.md`, `actors.toml` and the schema for editors from that,
//! [`load::Loaded::effective`] shows what holds and where it comes from, credentials masked (I9).

mod check;
mod check_partner;
mod effective;
pub mod finding;
mod kinds;
mod limits;
pub mod load;
mod manual;
mod mask;
pub mod model;
mod node;
pub mod pages;
mod partner;
mod read;
pub mod secrets;
mod template;
mod topic;
mod tree;
pub mod units;

pub use check::raise_open_files;
pub use finding::{Finding, Severity};
pub use load::{Loaded, load, load_text};
pub use model::*;
pub use secrets::{Secret, process_env};
pub use tree::Origin;

#[cfg(test)]
mod tests;
