//! Placeholder.
/// The HTTP sink.
pub struct HttpSink;
