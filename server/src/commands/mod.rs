//! One file per command.

pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod chat;
mod common;
pub(crate) mod config;
pub(crate) mod devices;
mod form;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod man;
pub(crate) mod perplexity;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod ps;
pub(crate) mod quantize;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod tokenize;
