//! The web page at `/`: files inside the program, without any data. What the page shows it asks the
//! API for, as any client would.

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// A file of the page.
struct File {
    path: &'static str,
    media: &'static str,
    text: &'static str,
}

macro_rules! files {
    ($($path:literal $media:literal $file:literal;)*) => {
        &[$(File { path: $path, media: $media, text: include_str!($file) }),*]
    };
}

const FILES: &[File] = files! {
    "/" "text/html; charset=utf-8" "index.html";
    "/page/style.css" "text/css; charset=utf-8" "style.css";
    "/page/icon.svg" "image/svg+xml" "icon.svg";
    "/page/theme.js" "text/javascript; charset=utf-8" "theme.js";
    "/page/app.js" "text/javascript; charset=utf-8" "app.js";
    "/page/api.js" "text/javascript; charset=utf-8" "api.js";
    "/page/chat.js" "text/javascript; charset=utf-8" "chat.js";
    "/page/dom.js" "text/javascript; charset=utf-8" "dom.js";
    "/page/live.js" "text/javascript; charset=utf-8" "live.js";
    "/page/plan.js" "text/javascript; charset=utf-8" "plan.js";
};

/// What browsers are told with every file: scripts, styles and requests of this server only, no frames
/// around it, and to ask again whether a file is still the same after an update.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// Is it a path of the page? Its files need no key: they hold no data, and one of them asks for it.
pub(crate) fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
}

fn answer(file: &'static File) -> Response {
    let media = [(header::CONTENT_TYPE, file.media)];
    (StatusCode::OK, HEADERS, media, file.text).into_response()
}

/// The routes of all files.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, file| {
        router.route(file.path, get(move || std::future::ready(answer(file))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_only_files_that_are_there_and_no_other_host() {
        for file in FILES {
            for part in file.text.split(['"', '\'', '`', '(', ')', ' ', '\n']) {
                if part.starts_with("/page/") {
                    assert!(is_page(part), "{}: {part}", file.path);
                }
                if let Some(name) = part.strip_prefix("./").filter(|name| name.ends_with(".js")) {
                    assert!(is_page(&format!("/page/{name}")), "{}: {part}", file.path);
                }
                let host = part.contains("://") && !part.starts_with("http://www.w3.org/");
                assert!(!host, "{}: {part}", file.path);
            }
        }
    }

    #[test]
    fn texts_are_never_set_as_html() {
        for file in FILES {
            for name in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!file.text.contains(name), "{}: {name}", file.path);
            }
        }
    }
}
