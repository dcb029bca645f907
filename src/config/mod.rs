//! Configuration: raw text, environment and several files become one typed value ([`model`]), checked once.
//! Only this folder (and `main`) reads files of settings and the environment.

pub mod defaults;
pub mod finding;
pub mod model;
pub mod units;

pub use finding::{Finding, Severity};
pub use model::*;
