//! The program as its users meet it: command line, HTTP server, official clients, real models.

mod cli_bench;
mod cli_calibrate;
mod cli_config;
mod cli_errors;
mod cli_generate;
mod cli_gpu;
mod cli_npu;
mod cli_plan;
mod cli_signals;
mod cli_tools;
mod cli_trace;
mod clients;
mod http_cache;
mod http_chat;
mod http_completions;
mod http_embeddings;
mod http_fuzz;
mod http_guard;
mod http_load;
mod http_storm;
mod http_stream;
mod http_tokens;
mod real;
mod real_onnx;
mod support;
