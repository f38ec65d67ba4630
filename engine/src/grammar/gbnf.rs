//! Grammars in GBNF, as llama.cpp takes them: read into rules.
//!
//! `name ::= item …`, where items are "texts", `[classes]`, `.`, names and parentheses, each with
//! `*`, `+`, `?` or `{m,n}`; `|` separates alternatives, `#` begins a comment. The rule `root` is the
//! whole reply. A line break ends a rule, but not inside of parentheses nor after `::=` and `|`.

use hashbrown::HashMap;

use super::{DEPTH_MAX, GrammarError, regular};

/// Most repetitions that `{m,n}` may name.
const REPEAT_MAX: u32 = 100_000;

/// A part of a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A text, as it is; may be empty.
    Text(String),
    /// A regular expression for one character.
    Class(String),
    /// The rule with this number.
    Rule(usize),
    Sequence(Vec<Node>),
    /// At least one.
    Choice(Vec<Node>),
    /// At least, and at most if there is a limit.
    Repeat(Box<Node>, u32, Option<u32>),
}

/// A grammar: its rules in the order of their numbers.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) bodies: Vec<Node>,
    pub(super) root: usize,
}

/// A grammar in the language of the compiler.
///
/// # Errors
/// [`GrammarError::Syntax`], [`GrammarError::TooComplex`] for deep nesting.
pub(super) fn to_lark(source: &str) -> Result<String, GrammarError> {
    Ok(regular::lark(&read(source)?))
}

fn read(source: &str) -> Result<Rules, GrammarError> {
    let mut reader = Reader { rest: source, line: 1, depth: 0, names: HashMap::new() };
    let mut bodies: Vec<Option<Node>> = Vec::new();
    reader.space(true);
    while !reader.rest.is_empty() {
        let line = reader.line;
        let name = reader.name().ok_or_else(|| reader.expected("the name of a rule"))?;
        let number = reader.number(&name);
        reader.space(false);
        if !reader.eat("::=") {
            return Err(reader.expected("'::='"));
        }
        reader.space(true);
        let body = reader.choice()?;
        if !reader.rest.is_empty() && !reader.rest.starts_with(['\n', '\r']) {
            return Err(reader.expected("the end of the line"));
        }
        bodies.resize(bodies.len().max(number + 1), None);
        if bodies[number].replace(body).is_some() {
            let message = format!("the rule {name:?} is there already");
            return Err(GrammarError::Syntax { line, message });
        }
        reader.space(true);
    }
    bodies.resize(bodies.len().max(reader.names.len()), None);
    let Some(&root) = reader.names.get("root") else {
        return Err(reader.fail("there is no rule \"root\""));
    };
    let missing = reader.names.iter().filter(|(_, number)| bodies[**number].is_none());
    if let Some(name) = missing.map(|(name, _)| name).min() {
        return Err(reader.fail(&format!("there is no rule {name:?}")));
    }
    Ok(Rules { bodies: bodies.into_iter().flatten().collect(), root })
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    /// Parentheses around.
    depth: usize,
    names: HashMap<String, usize>,
}

impl Reader<'_> {
    fn fail(&self, message: &str) -> GrammarError {
        GrammarError::Syntax { line: self.line, message: message.to_owned() }
    }

    fn expected(&self, what: &str) -> GrammarError {
        let found: String = self.rest.chars().take(12).collect();
        match found.is_empty() {
            true => self.fail(&format!("expected {what}, got the end")),
            false => self.fail(&format!("expected {what}, got {found:?}")),
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    /// Passes over blanks and comments, and line breaks if `lines`.
    fn space(&mut self, lines: bool) {
        loop {
            match self.rest.chars().next() {
                Some(' ' | '\t') => self.rest = &self.rest[1..],
                Some('\n' | '\r') if lines => {
                    self.line += usize::from(self.rest.starts_with('\n'));
                    self.rest = &self.rest[1..];
                }
                Some('#') => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Option<String> {
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !of_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn number(&mut self, name: &str) -> usize {
        let next = self.names.len();
        *self.names.entry(name.to_owned()).or_insert(next)
    }

    fn choice(&mut self) -> Result<Node, GrammarError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let what = format!("expected at most {DEPTH_MAX} parentheses inside each other");
            return Err(GrammarError::TooComplex(what));
        }
        let mut choices = vec![self.sequence()?];
        while self.eat("|") {
            self.space(true);
            choices.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(Node::Choice(choices))
    }

    fn sequence(&mut self) -> Result<Node, GrammarError> {
        let mut items = Vec::new();
        let lines = self.depth > 1;
        loop {
            self.space(lines);
            let item = match self.rest.chars().next() {
                Some('"') => Node::Text(self.text()?),
                Some('[') => Node::Class(self.class()?),
                Some('.') => {
                    self.rest = &self.rest[1..];
                    Node::Class("(?s:.)".to_owned())
                }
                Some('(') => {
                    self.rest = &self.rest[1..];
                    self.space(true);
                    let inner = self.choice()?;
                    self.space(true);
                    if !self.eat(")") {
                        return Err(self.expected("')'"));
                    }
                    inner
                }
                _ => match self.name() {
                    Some(name) => Node::Rule(self.number(&name)),
                    None => return Ok(Node::Sequence(items)),
                },
            };
            items.push(self.repeated(item)?);
        }
    }

    fn repeated(&mut self, mut item: Node) -> Result<Node, GrammarError> {
        loop {
            self.space(false);
            let (least, most) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.counts()?,
                _ => return Ok(item),
            };
            self.rest = &self.rest[1..];
            item = Node::Repeat(Box::new(item), least, most);
        }
    }

    /// `{m}`, `{m,}` or `{m,n}`, up to the closing brace.
    fn counts(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        let inner = self.rest[1..].split_once('}').map(|(inner, _)| inner);
        let Some(inner) = inner else { return Err(self.expected("'{m,n}'")) };
        let count = |text: &str| {
            let count = text.trim().parse::<u32>().ok();
            count.filter(|count| *count <= REPEAT_MAX).ok_or_else(|| {
                self.expected(&format!("'{{m,n}}' with numbers of at most {REPEAT_MAX}"))
            })
        };
        let counts = match inner.split_once(',') {
            None => (count(inner)?, Some(count(inner)?)),
            Some((least, most)) if most.trim().is_empty() => (count(least)?, None),
            Some((least, most)) => (count(least)?, Some(count(most)?)),
        };
        if counts.1.is_some_and(|most| most < counts.0) {
            return Err(self.expected("'{m,n}' with m of at most n"));
        }
        self.rest = &self.rest[1 + inner.len()..];
        Ok(counts)
    }

    fn text(&mut self) -> Result<String, GrammarError> {
        self.rest = &self.rest[1..];
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some('\n') | None => return Err(self.expected("'\"'")),
                Some(other) => text.push(other),
            }
        }
    }

    /// A class as a regular expression.
    fn class(&mut self) -> Result<String, GrammarError> {
        self.rest = &self.rest[1..];
        let mut class = String::from(if self.eat("^") { "[^" } else { "[" });
        let empty = class.len();
        loop {
            if self.eat("]") {
                break;
            }
            let first = self.member()?;
            let range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            if range {
                self.rest = &self.rest[1..];
                let last = self.member()?;
                if last < first {
                    return Err(self.expected("a range that goes up, before this"));
                }
                class.push_str(&format!("{}-{}", regular::escaped(first), regular::escaped(last)));
            } else {
                class.push_str(&regular::escaped(first));
            }
        }
        if class.len() == empty {
            return Err(self.expected("a class with characters, before this"));
        }
        class.push(']');
        Ok(class)
    }

    fn member(&mut self) -> Result<char, GrammarError> {
        match self.next() {
            Some('\\') => self.escape(),
            Some('\n') | None => Err(self.expected("']'")),
            Some(other) => Ok(other),
        }
    }

    /// What follows a backslash.
    fn escape(&mut self) -> Result<char, GrammarError> {
        let digits = match self.next() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(same @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/' | '.')) => return Ok(same),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.expected("an escape such as \\n or \\x41, before this")),
        };
        let code = self.rest.get(..digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let Some(character) = code.and_then(char::from_u32) else {
            return Err(self.expected(&format!("{digits} hexadecimal digits of a character")));
        };
        self.rest = &self.rest[digits..];
        Ok(character)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars_are_read() {
        let rules = read(
            "# a comment\nroot ::= \"a\\x62\\n\" other{2,} |\n  (\n [^a-c\\]\\-] | .\n )? # more\n\
             other ::= \"\"\n\n",
        )
        .expect("valid");
        let class = Node::Class(r"[^a-c\x{5d}\x{2d}]".to_owned());
        let any = Node::Class("(?s:.)".to_owned());
        let one = |node| Node::Sequence(vec![node]);
        let group = Node::Choice(vec![one(class), one(any)]);
        let first = Node::Sequence(vec![
            Node::Text("ab\n".to_owned()),
            Node::Repeat(Box::new(Node::Rule(1)), 2, None),
        ]);
        let second = one(Node::Repeat(Box::new(group), 0, Some(1)));
        assert_eq!(rules.bodies[rules.root], Node::Choice(vec![first, second]));
        assert_eq!(rules.bodies[1], Node::Choice(vec![one(Node::Text(String::new()))]));
    }

    #[test]
    fn errors_name_the_line() {
        for (source, line, part) in [
            ("", 1, "\"root\""),
            ("root ::= x", 1, "no rule \"x\""),
            ("root ::= \"a\"\nroot ::= \"b\"", 2, "already"),
            ("root = \"a\"", 1, "'::='"),
            ("root ::= \"a", 1, "got the end"),
            ("\nroot ::= [z-a]", 2, "goes up"),
            ("root ::= []", 1, "characters"),
            ("root ::= (\"a\"", 1, "')'"),
            ("root ::= \"a\" )", 1, "end of the line"),
            ("root ::= \"\\q\"", 1, "escape"),
            ("root ::= \"\\uD800\"", 1, "hexadecimal"),
            ("root ::= \"a\"{3,2}", 1, "at most n"),
            ("root ::= \"a\"{9999999}", 1, "at most 100000"),
            ("root ::= \"a\"{x", 1, "{m,n}"),
        ] {
            match read(source) {
                Err(GrammarError::Syntax { line: got, message }) => {
                    assert!(got == line && message.contains(part), "{source:?}: {got} {message}");
                }
                other => panic!("{source:?}: {other:?}"),
            }
        }
        let deep = format!("root ::= {}\"a\"", "(".repeat(100_000));
        assert!(matches!(read(&deep), Err(GrammarError::TooComplex(_))));
    }
}
