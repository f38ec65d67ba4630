//! What the end-to-end tests share: running the program, serving, talking HTTP, reference replies.

pub(crate) mod demo;
pub(crate) mod encoder;
pub(crate) mod http;
pub(crate) mod program;
pub(crate) mod server;
