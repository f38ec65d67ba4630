//! The HTTP server: routes, limits, start and end.

mod answer;
mod body;
mod chat;
mod chat_reply;
mod chat_request;
mod completion_choice;
mod completion_request;
mod completions;
mod embeddings;
mod error;
mod fields;
mod format;
mod guard;
mod id;
mod info;
mod inspect;
mod openapi;
mod outlet;
mod parts;
mod replies;
mod request_fields;
mod responses;
mod responses_output;
mod responses_request;
mod routes;
mod slots;
mod socket;
mod socket_message;
mod sse;
mod state;
mod text_inputs;
mod tokens;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;

use crate::page;
use error::ApiError;
pub(crate) use id::seed as random_seed;
pub(crate) use state::{AppState, ServedModel, ServerOptions};

/// All routes.
pub(crate) fn router(state: Arc<AppState>) -> Router {
    routes::routed(state.options.metrics)
        .merge(page::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn_with_state(state.clone(), guard::guard))
        .with_state(state)
}

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let (path, table) = (uri.path(), routes::table());
    let paths: Vec<(String, &str)> =
        table.iter().map(|route| (route.documented_path(), route.method)).collect();
    let nearest = trefoil_scheduler::nearest(path, paths.iter().map(|(path, _)| path.as_str()));
    let near = paths.iter().find(|(path, _)| Some(path.as_str()) == nearest);
    let hint = match near {
        Some((near, method)) => format!("did you mean {} {near}?", method.to_ascii_uppercase()),
        None => "/openapi.json says what there is.".to_owned(),
    };
    let message = format!("There is nothing at {path}; {hint}");
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let message = format!("{} does not take {method}.", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> axum::response::Response {
    tracing::error!("a handler panicked");
    ApiError::internal("Internal error; please report it with the server's log.").into_response()
}

/// Serves until `stop` resolves, then lets running requests end within the grace time.
pub(crate) async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let grace = state.options.shutdown_grace;
    let (stopping, mut stopped) = tokio::sync::watch::channel(false);
    let service = router(state.clone()).into_make_service();
    let server = axum::serve(listener, service).with_graceful_shutdown(async move {
        stop.await;
        // The receiver lives as long as the server does.
        let _ = stopping.send(true);
    });
    tokio::select! {
        result = async {
            let result = IntoFuture::into_future(server).await;
            // Sockets left the server when they were opened.
            state.sockets.none().await;
            result
        } => result,
        () = async {
            // An error means that the sender is gone: then the server has ended by itself.
            if stopped.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(grace + Duration::from_millis(100)).await;
        } => {
            tracing::warn!("requests were still running at the end of the grace time");
            Ok(())
        }
    }
}
