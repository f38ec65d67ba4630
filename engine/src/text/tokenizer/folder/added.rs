//! What `tokenizer.json` puts around its model: added tokens, tokens around every text, and the
//! way back to text.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::super::specials::Special;
use super::super::surface::Surface;
use super::super::vocabulary::{TokenKind, Vocabulary};
use super::description::Description;

/// Ids that may be missing between those that are there, for one that is there.
const HOLES_PER_TOKEN: usize = 2;

/// Ids that may be missing whatever is there.
const HOLES_MAX: usize = 1 << 16;

/// Texts and kinds of all tokens by id, of the model and added ones. An id that no token has gets
/// an empty text.
pub(super) fn all_tokens(
    description: &Description,
) -> Result<(Vec<Cow<'_, str>>, Vec<TokenKind>), String> {
    let (model, added) = (&description.model.vocab.0, &description.added_tokens);
    let tokens = model.len() + added.len();
    let limit = tokens * HOLES_PER_TOKEN + HOLES_MAX;
    let ids = model.iter().map(|(_, id)| *id).chain(added.iter().map(|token| token.id));
    let count = ids.max().map_or(0, |last| last as usize + 1);
    if count > limit {
        return Err(format!("expected token ids below {limit}, got {}", count - 1));
    }
    let mut texts = vec![Cow::Borrowed(""); count];
    let mut kinds = vec![TokenKind::Unused; count];
    for (text, id) in model {
        texts[*id as usize] = Cow::Borrowed(text.as_str());
        kinds[*id as usize] = TokenKind::Normal;
    }
    for token in added {
        let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        texts[token.id as usize] = Cow::Borrowed(token.content.as_str());
        kinds[token.id as usize] = kind;
    }
    Ok((texts, kinds))
}

/// The added tokens, to be searched for in text.
pub(super) fn specials(description: &Description, vocabulary: &Vocabulary) -> Vec<Special> {
    let added = description.added_tokens.iter().map(|token| Special {
        strip_left: token.lstrip,
        strip_right: token.rstrip,
        single_word: token.single_word,
        ..Special::new(token.id, &token.content, token.special)
    });
    // control tokens that the file calls ordinary
    let ids = added.clone().map(|token| token.id).collect::<std::collections::HashSet<_>>();
    let promoted = (0..vocabulary.len() as u32)
        .filter(|id| vocabulary.kind(*id) == TokenKind::Control && !ids.contains(id))
        .map(|id| Special::new(id, vocabulary.text(id), true));
    added.chain(promoted).collect()
}

/// Ids before and after every text: what the post-processor says, else what the configuration
/// says of the tokens that begin and end a text.
pub(super) fn around(
    description: &Description,
    config: &Map<String, Value>,
    named: &dyn Fn(&str) -> Option<u32>,
    vocabulary: &Vocabulary,
) -> (Vec<u32>, Vec<u32>) {
    template(&description.post_processor, vocabulary).unwrap_or_else(|| {
        let wanted = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
        let add = |key: &str, token: &str| named(token).filter(|_| wanted(key));
        let (bos, eos) = (add("add_bos_token", "bos_token"), add("add_eos_token", "eos_token"));
        (bos.into_iter().collect(), eos.into_iter().collect())
    })
}

/// The tokens that a post-processor puts around one text; `None` where it puts none.
fn template(processor: &Value, vocabulary: &Vocabulary) -> Option<(Vec<u32>, Vec<u32>)> {
    let known = |id: &Value| {
        let id = u32::try_from(id.as_u64()?).ok()?;
        ((id as usize) < vocabulary.len()).then_some(id)
    };
    match processor.get("type")?.as_str()? {
        "Sequence" => {
            let steps = processor.get("processors")?.as_array()?;
            steps.iter().find_map(|step| template(step, vocabulary))
        }
        "BertProcessing" | "RobertaProcessing" => {
            let id = |name: &str| known(processor.get(name)?.get(1)?);
            Some((vec![id("cls")?], vec![id("sep")?]))
        }
        "TemplateProcessing" => {
            let mut around = (Vec::new(), Vec::new());
            let mut after = false;
            for item in processor.get("single")?.as_array()? {
                if item.get("Sequence").is_some() {
                    after = true;
                } else if let Some(name) = item.pointer("/SpecialToken/id").and_then(Value::as_str)
                {
                    let ids = processor.get("special_tokens")?.get(name)?.get("ids")?.as_array()?;
                    let side = if after { &mut around.1 } else { &mut around.0 };
                    side.extend(ids.iter().filter_map(known));
                }
            }
            Some(around)
        }
        _ => None,
    }
}

/// The spelling of tokens, as the decoder undoes it.
pub(super) fn surface(description: &Description) -> Surface {
    if let Some(mark) = description.model.continuation() {
        return Surface::Continued(mark.to_owned());
    }
    let decoder = &description.decoder;
    let steps = match decoder.get("decoders").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(decoder),
    };
    let kind = |step: &Value| step.get("type").and_then(Value::as_str).unwrap_or("").to_owned();
    if steps.iter().any(|step| kind(step) == "ByteLevel") {
        return Surface::ByteLevel;
    }
    let replaces = |step: &Value| {
        kind(step) == "Replace" && step.pointer("/pattern/String") == Some(&Value::from("\u{2581}"))
    };
    let metaspace = steps.iter().find(|step| kind(step) == "Metaspace");
    if let Some(metaspace) = metaspace {
        let never = metaspace.get("prepend_scheme") == Some(&Value::from("never"))
            || metaspace.get("add_prefix_space") == Some(&Value::from(false));
        return Surface::Metaspace { prefix_space: !never };
    }
    if steps.iter().any(replaces) {
        return Surface::Metaspace { prefix_space: steps.iter().any(|step| kind(step) == "Strip") };
    }
    Surface::Plain
}
