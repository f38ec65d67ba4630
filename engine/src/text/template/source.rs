//! Changes to a template's source for what minijinja understands otherwise than Jinja:
//!
//! - the block tag `generation`, which transformers adds to mark the assistant's words for
//!   training, becomes `with`: it opens a scope and prints its body;
//! - `for x in e` becomes `for x in (e)|__iter__`, a filter that fails for what Python cannot
//!   iterate over (minijinja takes none for an empty list);
//! - in templates that use `safe` or `escape`, `a + b` becomes `(a)|__add__(b)`, a filter that
//!   knows that adding to marked text escapes the other side.
//!
//! Text outside of tags, raw blocks and line numbers stay as they are.

use std::ops::Range;

use super::lexer::{Kind, Token, lex};

/// The filter that `for` loops get.
pub(super) const ITER_FILTER: &str = "__iter__";

/// The filter that stands for `+`.
pub(super) const ADD_FILTER: &str = "__add__";

/// Brackets inside brackets that are still looked into; the parser refuses deeper ones anyway.
const DEPTH_MAX: usize = 100;

/// Words that separate expressions of lower precedence than `+`, as far as they may stand in a
/// tag. `is` is not among them: a test binds tighter.
const SEPARATORS: [&str; 9] =
    ["and", "or", "not", "in", "if", "else", "recursive", "with", "without"];

/// The changed source.
pub(super) fn rewrite(source: &str) -> String {
    let marks_text = ["safe", "escape", "|e", "| e"].iter().any(|word| source.contains(word));
    let mut out = String::with_capacity(source.len() + source.len() / 8);
    let mut rest = source;
    while let Some(start) = next_tag(rest) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.starts_with("{#") {
            let end = rest.find("#}").map_or(rest.len(), |end| end + 2);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let block = rest.starts_with("{%");
        let open = 2 + usize::from(rest[2..].starts_with(['-', '+']));
        let (tokens, length) = lex(&rest[open..], if block { "%}" } else { "}}" });
        let (tag, after) = rest.split_at(open + length);
        let name = tokens.first().map_or("", |token| &tag[open..][token.range.clone()]);
        if block && name == "raw" {
            let end = tag.len() + end_of_raw(after).unwrap_or(after.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        out.push_str(&tag[..open]);
        tag_body(&mut out, &tag[open..], &tokens, block, marks_text);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn next_tag(text: &str) -> Option<usize> {
    text.as_bytes()
        .windows(2)
        .position(|pair| pair[0] == b'{' && matches!(pair[1], b'%' | b'{' | b'#'))
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> Option<usize> {
    text.match_indices("{%").map(|(start, _)| start).find(|start| {
        text[start + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw")
    })
}

/// Writes the inside of a tag.
fn tag_body(out: &mut String, body: &str, tokens: &[Token], block: bool, marks_text: bool) {
    let Some(first) = tokens.first().filter(|_| block) else {
        expressions(out, body, tokens, 0..body.len(), marks_text);
        return;
    };
    out.push_str(&body[..first.range.start]);
    let name = &body[first.range.clone()];
    out.push_str(match name {
        "generation" => "with",
        "endgeneration" => "endwith",
        other => other,
    });
    let (tokens, start) = (&tokens[1..], first.range.end);
    match iterated(body, tokens).filter(|_| name == "for") {
        Some(iterated) => {
            let inner = &tokens[iterated.clone()];
            let text = inner[0].range.start..inner[inner.len() - 1].range.end;
            out.push_str(&body[start..text.start]);
            out.push('(');
            expressions(out, body, inner, text.clone(), marks_text);
            out.push_str(")|");
            out.push_str(ITER_FILTER);
            let (later, rest) = (&tokens[iterated.end..], text.end..body.len());
            expressions(out, body, later, rest, marks_text);
        }
        None => expressions(out, body, tokens, start..body.len(), marks_text),
    }
}

/// Which of the tokens after `for` are the expression that is iterated over.
fn iterated(body: &str, tokens: &[Token]) -> Option<Range<usize>> {
    let word = |token: &Token| match token.kind {
        Kind::Word if token.depth == 0 => &body[token.range.clone()],
        _ => "",
    };
    let start = tokens.iter().position(|token| word(token) == "in")? + 1;
    let length = tokens[start..].iter().position(|t| matches!(word(t), "if" | "recursive"));
    let end = length.map_or(tokens.len(), |length| start + length);
    (start < end).then_some(start..end)
}

/// Writes `body[text]`, to which `tokens` belong.
fn expressions(
    out: &mut String,
    body: &str,
    tokens: &[Token],
    text: Range<usize>,
    marks_text: bool,
) {
    let adds = |token: &Token| token.kind == Kind::Operator && &body[token.range.clone()] == "+";
    let too_deep = tokens.iter().any(|token| token.depth > DEPTH_MAX);
    if !marks_text || too_deep || !tokens.iter().any(adds) {
        out.push_str(&body[text]);
        return;
    }
    let mut done = text.start;
    let mut index = 0;
    while index < tokens.len() {
        let end = sum_end(body, tokens, index);
        if end > index {
            out.push_str(&body[done..tokens[index].range.start]);
            sum(out, body, &tokens[index..end]);
            done = tokens[end - 1].range.end;
        }
        index = end.max(index + 1);
    }
    out.push_str(&body[done..text.end]);
}

/// The end of the longest run of tokens from `start` on that can be one sum: nothing at the depth
/// of its first token binds less tightly.
fn sum_end(body: &str, tokens: &[Token], start: usize) -> usize {
    let depth = tokens[start].depth;
    let mut end = start;
    while let Some(token) = tokens.get(end) {
        let part = &body[token.range.clone()];
        let after_is = end > start && &body[tokens[end - 1].range.clone()] == "is";
        let separates = match token.kind {
            Kind::Word => SEPARATORS.contains(&part) && !after_is,
            Kind::Operator => {
                matches!(part, "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=")
            }
            _ => false,
        };
        if token.depth < depth || (token.depth == depth && separates) {
            break;
        }
        end += 1;
    }
    end
}

/// Writes a run of tokens that is one sum, or one operand.
fn sum(out: &mut String, body: &str, tokens: &[Token]) {
    let depth = tokens[0].depth;
    let signs: Vec<usize> = (1..tokens.len())
        .filter(|&index| {
            let token = &tokens[index];
            let part = &body[token.range.clone()];
            token.depth == depth
                && token.kind == Kind::Operator
                && (part == "+" || part == "-")
                && tokens[index - 1].kind != Kind::Operator
        })
        .collect();
    let plus = |sign: usize| &body[tokens[sign].range.clone()] == "+";
    let rights: Vec<&[Token]> = (1..=signs.len())
        .map(|next| &tokens[signs[next - 1] + 1..signs.get(next).copied().unwrap_or(tokens.len())])
        .collect();
    if rights.iter().any(|right| right.is_empty()) {
        // not an expression: left as it is, for the parser to refuse
        out.push_str(&body[tokens[0].range.start..tokens[tokens.len() - 1].range.end]);
        return;
    }
    out.push_str(&"(".repeat(signs.iter().filter(|&&sign| plus(sign)).count()));
    operand(out, body, &tokens[..signs.first().copied().unwrap_or(tokens.len())]);
    for (&sign, right) in signs.iter().zip(rights) {
        out.push_str(&body[tokens[sign - 1].range.end..tokens[sign].range.start]);
        if plus(sign) {
            out.push_str(")|");
            out.push_str(ADD_FILTER);
            out.push('(');
            operand(out, body, right);
            out.push(')');
        } else {
            out.push_str("- ");
            operand(out, body, right);
        }
    }
}

/// Writes an operand of a sum; what its brackets hold may hold sums again.
fn operand(out: &mut String, body: &str, tokens: &[Token]) {
    let depth = tokens[0].depth;
    let mut done = tokens[0].range.start;
    let mut index = 0;
    while index < tokens.len() {
        if tokens[index].depth == depth {
            index += 1;
            continue;
        }
        let inner = tokens[index..].iter().take_while(|token| token.depth > depth).count();
        let inside = &tokens[index..index + inner];
        let text = inside[0].range.start..inside[inner - 1].range.end;
        out.push_str(&body[done..text.start]);
        expressions(out, body, inside, text.clone(), true);
        done = text.end;
        index += inner;
    }
    out.push_str(&body[done..tokens[tokens.len() - 1].range.end]);
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    fn check(cases: &[(&str, &str)]) {
        for (source, expected) in cases {
            let expected = if *expected == "same" { source } else { expected };
            assert_eq!(rewrite(source), *expected, "{source}");
        }
    }

    #[test]
    fn generation_becomes_a_scope() {
        check(&[
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{{ generation }} generation {% if generation %}", "same"),
            ("{# {% generation %} #}{% generation %}", "{# {% generation %} #}{% with %}"),
            (
                "{% raw %}{% generation %}{% endraw %}{%generation%}",
                "{% raw %}{% generation %}{% endraw %}{%with%}",
            ),
            ("{{ '{% generation %}' }}", "same"),
            ("{% generations %}", "same"),
        ]);
    }

    #[test]
    fn loops_check_what_they_iterate_over() {
        check(&[
            ("{%- for a in b -%}", "{%- for a in (b)|__iter__ -%}"),
            (
                "{% for a, b in c.d('in')|items if a in b %}",
                "{% for a, b in (c.d('in')|items)|__iter__ if a in b %}",
            ),
            (
                "{% for a in (b if c else d) recursive %}",
                "{% for a in ((b if c else d))|__iter__ recursive %}",
            ),
            ("{% for a in [x, y] %}", "{% for a in ([x, y])|__iter__ %}"),
        ]);
    }

    #[test]
    fn sums_change_only_where_text_is_marked() {
        check(&[
            ("{{ a + b }}", "same"),
            ("{{ a|safe + b }}", "{{ (a|safe )|__add__(b) }}"),
            (
                "{{ a|safe + b * c - d + e[f + 1](g) if x is not y + z }}",
                "{{ ((a|safe )|__add__(b * c) - d )|__add__(e[(f )|__add__(1)](g)) if \
                 (x is not y )|__add__(z) }}",
            ),
            ("{% set a = -b|safe %}", "same"),
            (
                "{{ f(a + b, c=d|safe + '+') }}",
                "{{ f((a )|__add__(b), c=(d|safe )|__add__('+')) }}",
            ),
        ]);
    }

    #[test]
    fn damaged_sources_pass_through() {
        check(&[
            ("{%", "same"),
            ("{% raw %}{%", "same"),
            ("ä{#", "same"),
            ("{{ 'safe + ", "same"),
            ("{{ a|safe + }}", "same"),
            ("{% for %}{% for a in %}{{ }}{{ + + ] }}safe", "same"),
        ]);
    }
}
