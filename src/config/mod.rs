//! Configuration: raw text, environment and several files become one typed value ([`model`]), checked once.
//! Only this folder (and `main`) reads files of settings and the environment.
//!
//! ```text
//! files ─┐ tree: layers, merged by the config crate, every value with file and line
//! env ───┴─► read, sections, partner, topic: typed values, every mistake gathered
//!                └─► check: references, contradictions, bounds of the machine ─► Loaded, or all findings
//! ```
//!
//! [`defaults`] has every default, [`reference`] documents every key (`docs/configuration.md` is printed from it),
//! [`load::Loaded::effective`] shows what holds and where it comes from, credentials masked (I9).

mod check;
mod check_partner;
pub mod defaults;
mod effective;
pub mod finding;
pub mod load;
mod mask;
pub mod model;
mod partner;
mod read;
pub mod reference;
pub mod secrets;
mod sections;
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
