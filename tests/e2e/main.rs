//! The real binary, from the outside: real folders, real kills, and stand-in partners that count what reaches them.
//!
//! One binary for all suites, so that it is linked once. Short by default; `SLUICEGATE_MESSAGES` and
//! `SLUICEGATE_KILLS` make the kill suites as large as wanted.

mod answers;
mod common;
mod input;
mod intake;
mod kills;
mod limits;
mod looking;
mod orders;
mod partners;
mod scope;
mod secrets;
mod stop;
mod telling;
mod upkeep;
