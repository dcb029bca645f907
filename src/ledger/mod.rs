//! The ledger on its log: what is durable of each message, and what operators may ask and order about it.

pub mod desk;
