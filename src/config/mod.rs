//! Configuration: raw text, environment and several files become one typed value ([`model`]), checked once.
//! Only this folder (and `main`) reads files of settings and the environment.

pub mod defaults;
pub mod model;

pub use model::*;
