//! The table of all routes. `openapi/` documents each of them.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};

use super::state::AppState;
use super::{
    chat, completions, embeddings, info, inspect, openapi, responses, slots, socket, tokens,
};

const METRICS: &str = "/metrics";

/// Where a route is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Under /v1 and /api/v1.
    Api,
    /// Under its own path only.
    Root,
    /// Under all three.
    Everywhere,
}

/// A route.
pub(crate) struct Route {
    /// `get` (which answers HEAD too) or `post`.
    pub(crate) method: &'static str,
    path: &'static str,
    place: Place,
    handler: MethodRouter<Arc<AppState>>,
}

impl Route {
    /// The path under which the API's document has it.
    pub(crate) fn documented_path(&self) -> String {
        let path = self.path.replace("{*", "{");
        match self.place {
            Place::Api => format!("/v1{path}"),
            Place::Root | Place::Everywhere => path,
        }
    }

    fn paths(&self) -> Vec<String> {
        let own = || self.path.to_owned();
        let api = || [format!("/v1{}", self.path), format!("/api/v1{}", self.path)];
        match self.place {
            Place::Root => vec![own()],
            Place::Api => api().into(),
            Place::Everywhere => [own()].into_iter().chain(api()).collect(),
        }
    }
}

fn get<H: Handler<T, Arc<AppState>>, T: 'static>(
    place: Place,
    path: &'static str,
    handler: H,
) -> Route {
    Route { method: "get", path, place, handler: routing::get(handler) }
}

fn post<H: Handler<T, Arc<AppState>>, T: 'static>(
    place: Place,
    path: &'static str,
    handler: H,
) -> Route {
    Route { method: "post", path, place, handler: routing::post(handler) }
}

/// All routes.
pub(crate) fn table() -> Vec<Route> {
    use Place::{Api, Everywhere, Root};
    vec![
        post(Api, "/chat/completions", chat::create),
        post(Api, "/completions", completions::create),
        post(Api, "/responses", responses::create),
        post(Api, "/embeddings", embeddings::create),
        get(Api, "/stream", socket::open),
        get(Api, "/models", info::models),
        get(Api, "/models/{*id}", info::model),
        get(Api, "/plan", inspect::plan),
        post(Api, "/plan", inspect::what_if),
        get(Api, "/policy", inspect::policy),
        get(Api, "/devices", inspect::devices),
        get(Api, "/system-info", inspect::system_info),
        get(Api, "/stats", inspect::stats),
        post(Everywhere, "/tokenize", tokens::tokenize),
        post(Everywhere, "/detokenize", tokens::detokenize),
        post(Everywhere, "/apply-template", tokens::apply_template),
        get(Everywhere, "/health", info::health),
        get(Root, "/ready", info::ready),
        get(Root, METRICS, info::metrics),
        get(Root, "/props", slots::props),
        get(Root, "/slots", slots::slots),
        get(Root, "/openapi.json", openapi::serve),
    ]
}

/// Does the route with this path of the router take a body?
pub(crate) fn takes_body(path: &str) -> bool {
    static PATHS: OnceLock<HashSet<String>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| {
        let posts = table().into_iter().filter(|route| route.method == "post");
        posts.flat_map(|route| route.paths()).collect()
    });
    paths.contains(path)
}

/// A router with the table's routes; `metrics`: the one of metrics too.
pub(crate) fn routed(metrics: bool) -> Router<Arc<AppState>> {
    let mut router = Router::new();
    for route in table() {
        if route.path == METRICS && !metrics {
            continue;
        }
        for path in route.paths() {
            router = router.route(&path, route.handler.clone());
        }
    }
    router
}
