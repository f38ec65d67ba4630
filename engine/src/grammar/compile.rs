//! From a source to a grammar that replies can follow: on a thread of its own, within limits.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use parking_lot::{Condvar, Mutex};
use serde_json::json;

use super::masks::{MaskThreads, short};
use super::{DEPTH_MAX, GrammarError, GrammarSource, SOURCE_BYTES_MAX, gbnf, vocabulary};
use crate::text::Tokenizer;

/// Longest time that a grammar may take to compile.
pub const COMPILE_LIMIT: Duration = Duration::from_secs(2);

/// Grammars that are compiled at once; one that ran out of time still counts until it ends.
const COMPILING_MAX: usize = 2;
/// Longest wait for one of those places.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Grammars that are kept for further requests.
const KEPT_MAX: usize = 16;
/// Stack of a compiling thread: deep nesting makes deep calls.
const STACK_BYTES: usize = 64 << 20;

/// White space between the parts of a JSON document: none, or a space. More says nothing, costs tokens,
/// and is where small models never come to an end.
const WHITE_SPACE: &str = " ";

/// A compiled grammar; clones share it.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

struct Compiled {
    /// At the beginning of a reply.
    matcher: Mutex<Matcher>,
    threads: MaskThreads,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// A parser of its own for a reply.
    pub(super) fn matcher(&self) -> Matcher {
        self.0.matcher.lock().deep_clone()
    }

    pub(super) fn threads(&self) -> &MaskThreads {
        &self.0.threads
    }
}

/// What all grammars of a model share.
struct Shared {
    factory: ParserFactory,
    threads: MaskThreads,
}

/// Compiles grammars for a model's tokenizer, and keeps the latest.
#[derive(Debug)]
pub struct Grammars {
    tokenizer: Tokenizer,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Made when the first grammar comes.
    shared: OnceLock<Result<Shared, GrammarError>>,
    /// Those compiled last, the latest at the end, under the hash of their source.
    kept: Mutex<VecDeque<(blake3::Hash, Grammar)>>,
    compiling: Mutex<usize>,
    done: Condvar,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("kept", &self.kept.lock().len()).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a tokenizer; nothing is made yet.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, inner: Arc::default() }
    }

    /// Compiles a grammar, or finds it among those kept. Waits for at most a few seconds: call it where
    /// that is no harm.
    ///
    /// # Errors
    /// The source is refused, or takes more than [`COMPILE_LIMIT`].
    pub fn compile(&self, source: &GrammarSource) -> Result<Grammar, GrammarError> {
        let text = source.text();
        if text.len() > SOURCE_BYTES_MAX {
            let bytes = text.len();
            let what = format!("expected at most {SOURCE_BYTES_MAX} bytes, got {bytes}");
            return Err(GrammarError::TooComplex(what));
        }
        let key = blake3::hash(format!("{} {text}", source.kind()).as_bytes());
        if let Some(grammar) = self.inner.find(key) {
            return Ok(grammar);
        }
        self.inner.enter()?;
        let (sender, receiver) = bounded(1);
        let (inner, tokenizer, source) =
            (self.inner.clone(), self.tokenizer.clone(), source.clone());
        let work = move || {
            let shared = inner.shared.get_or_init(|| {
                let threads = MaskThreads::start()
                    .map_err(|error| GrammarError::Refused(error.to_string()))?;
                Ok(Shared { factory: vocabulary::factory(&tokenizer)?, threads })
            });
            // The vocabulary is not the grammar's fault: its time begins here.
            let _ = sender.send(None);
            let result = shared.as_ref().map_err(Clone::clone).and_then(|s| build(s, &source));
            if let Ok(grammar) = &result {
                inner.keep(key, grammar);
            }
            // Nobody waits any more if it took too long.
            let _ = sender.send(Some(result));
        };
        let place = Place(self.inner.clone());
        let spawned = std::thread::Builder::new()
            .name("trefoil-grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let _place = place;
                work();
            });
        spawned.map_err(|error| GrammarError::Refused(error.to_string()))?;
        let panicked = || GrammarError::Refused("its compilation panicked".to_owned());
        if receiver.recv().is_err() {
            return Err(panicked());
        }
        match receiver.recv_timeout(COMPILE_LIMIT) {
            Ok(result) => result.unwrap_or_else(|| Err(panicked())),
            Err(RecvTimeoutError::Disconnected) => Err(panicked()),
            Err(RecvTimeoutError::Timeout) => Err(GrammarError::TooComplex(format!(
                "it was not compiled within {COMPILE_LIMIT:?}"
            ))),
        }
    }
}

impl Inner {
    fn find(&self, key: blake3::Hash) -> Option<Grammar> {
        let mut kept = self.kept.lock();
        let index = kept.iter().position(|(other, _)| *other == key)?;
        let found = kept.remove(index)?;
        let grammar = found.1.clone();
        kept.push_back(found);
        Some(grammar)
    }

    fn keep(&self, key: blake3::Hash, grammar: &Grammar) {
        let mut kept = self.kept.lock();
        kept.retain(|(other, _)| *other != key);
        while kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((key, grammar.clone()));
    }

    /// Takes one of the few places for compiling threads.
    fn enter(&self) -> Result<(), GrammarError> {
        let until = Instant::now() + WAIT_MAX;
        let mut compiling = self.compiling.lock();
        while *compiling >= COMPILING_MAX {
            if self.done.wait_until(&mut compiling, until).timed_out() {
                return Err(GrammarError::Busy);
            }
        }
        *compiling += 1;
        Ok(())
    }
}

/// A place for a compiling thread; given back however that ends.
struct Place(Arc<Inner>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.compiling.lock() -= 1;
        self.0.done.notify_one();
    }
}

impl GrammarSource {
    fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Gbnf(_) => "gbnf",
            Self::Lark(_) => "lark",
            Self::Regex(_) => "regex",
        }
    }

    fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::JsonObject => "".into(),
            Self::JsonSchema(schema) => schema.value().to_string().into(),
            Self::Gbnf(text) | Self::Lark(text) | Self::Regex(text) => text.into(),
        }
    }

    /// As the compiler takes it.
    fn lower(&self) -> Result<TopLevelGrammar, GrammarError> {
        let json = |schema| TopLevelGrammar::from_json_schema(json_part(schema));
        Ok(match self {
            Self::JsonObject => json(json!({"type": "object"})),
            Self::JsonSchema(schema) => json(schema.value().clone()),
            Self::Gbnf(text) => TopLevelGrammar::from_lark(gbnf::to_lark(text)?),
            Self::Lark(text) => {
                check_depth(text)?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Self::Regex(text) => TopLevelGrammar::from_regex(text),
        })
    }
}

/// A schema with what the compiler is told about all JSON.
pub(crate) fn json_part(mut schema: serde_json::Value) -> serde_json::Value {
    if !schema.is_object() {
        schema = json!({"allOf": [schema]});
    }
    schema["x-guidance"] = json!({"whitespace_pattern": WHITE_SPACE, "coerce_one_of": true});
    schema
}

/// Refuses nesting that would need too deep a stack.
fn check_depth(text: &str) -> Result<(), GrammarError> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > 4 * DEPTH_MAX {
            return Err(GrammarError::TooComplex("its parentheses are nested too deeply".into()));
        }
    }
    Ok(())
}

fn build(shared: &Shared, source: &GrammarSource) -> Result<Grammar, GrammarError> {
    let parser = shared.factory.create_parser(source.lower()?);
    let parser = parser.map_err(|error| classify(&short(&error)))?;
    let matcher = Matcher::new(Ok(parser));
    if let Some(error) = matcher.get_error() {
        return Err(classify(&short(&error)));
    }
    // The first mask tells whether there is any reply at all.
    if let Err(error) = matcher.deep_clone().compute_mask_or_eos() {
        return Err(match classify(&short(&error)) {
            GrammarError::Refused(_) => GrammarError::Refused("it allows no reply".to_owned()),
            other => other,
        });
    }
    let compiled = Compiled { matcher: Mutex::new(matcher), threads: shared.threads.clone() };
    Ok(Grammar(Arc::new(compiled)))
}

/// What an error of the compiler means, which it tells in words only.
pub(super) fn classify(message: &str) -> GrammarError {
    const COMPLEX: [&str; 8] = [
        "too complex",
        "fuel",
        "too large",
        "too big",
        "too many",
        "exceed",
        "limit",
        "stack level",
    ];
    let lower = message.to_lowercase();
    match COMPLEX.iter().any(|word| lower.contains(word)) {
        true => GrammarError::TooComplex(message.to_owned()),
        false => GrammarError::Refused(message.to_owned()),
    }
}
