//! Reference replies of the demo model, made by another program (see `tests/data/README.md`).

use serde_json::Value;

/// One greedy reply.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) prompt: String,
    pub(crate) ids_in: Vec<u32>,
    /// Up to and with the end token.
    pub(crate) ids_out: Vec<u32>,
    pub(crate) text: String,
    /// Smallest gap between the two best logits on the way.
    pub(crate) margin: f64,
}

/// Replies with smaller gaps may differ where activations are rounded.
pub(crate) const SAFE_MARGIN: f64 = 0.3;

/// All replies.
pub(crate) fn replies() -> Vec<Reply> {
    let path = trefoil_tests::golden::data().join("demo.json");
    let text = std::fs::read_to_string(&path).expect("the repository carries it");
    let document: Value = serde_json::from_str(&text).expect("it is JSON");
    let replies = document["replies"].as_array().expect("it has replies");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    replies
        .iter()
        .map(|reply| Reply {
            prompt: text(&reply["prompt"]),
            ids_in: ids(&reply["ids_in"]),
            ids_out: ids(&reply["ids_out"]),
            text: text(&reply["text_out"]),
            margin: reply["smallest_margin"].as_f64().expect("a number"),
        })
        .collect()
}

/// The reply to the shortest question whose reply rounding does not change.
pub(crate) fn safe_reply() -> Reply {
    let safe = replies().into_iter().filter(|reply| reply.margin > SAFE_MARGIN);
    safe.min_by_key(|reply| reply.ids_out.len()).expect("there is one")
}

/// Token ids of a JSON array.
#[track_caller]
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap_or_else(|| panic!("not an array: {value}"));
    list.iter().map(|id| u32::try_from(id.as_u64().expect("an id")).expect("32 bits")).collect()
}
