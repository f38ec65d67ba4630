//! Which rules of a grammar are regular, and the grammar written down for the compiler: regular rules
//! as terminals, which a lexer matches fast; the others as rules over these.
//!
//! Inside of a rule that is not regular, a terminal takes the longest text that it can: of two ways to
//! cut a reply into terminals only that one counts. What is accepted is then part of what the grammar
//! says, so that a reply is valid whichever way it was made.

use std::fmt::Write;

use super::gbnf::{Node, Rules};

/// The grammar in Lark. Terminals are called `T0`, `T1`…, rules `r0`, `r1`….
pub(super) fn lark(rules: &Rules) -> String {
    let bodies: Vec<Node> =
        (0..).zip(&rules.bodies).map(|(n, body)| without_tail(n, body)).collect();
    let regular = regular(&bodies);
    let mut out = String::new();
    let _ = writeln!(out, "start: {}{}", letter(regular[rules.root]), rules.root);
    for (number, node) in bodies.iter().enumerate() {
        let _ = write!(out, "{}{number}: ", letter(regular[number]));
        write_node(node, &regular, &mut out);
        out.push('\n');
    }
    out
}

/// A rule whose alternatives end in the rule itself, as a repetition: `x ::= a x | b` is `a* b`.
fn without_tail(number: usize, body: &Node) -> Node {
    let mut choices = Vec::new();
    flatten(body, &mut choices);
    let itself = Node::Rule(number);
    let (mut heads, mut ends) = (Vec::new(), Vec::new());
    for choice in choices {
        match choice.split_last() {
            Some((last, head)) if *last == itself => heads.push(Node::Sequence(head.to_vec())),
            _ => ends.push(Node::Sequence(choice)),
        }
    }
    let inner = heads.iter().chain(&ends).any(|node| mentions(node, number));
    if heads.is_empty() || ends.is_empty() || inner {
        return body.clone();
    }
    let again = Node::Repeat(Box::new(Node::Choice(heads)), 0, None);
    Node::Sequence(vec![again, Node::Choice(ends)])
}

/// The alternatives of a body, each as a sequence; an optional one is itself or nothing.
fn flatten(node: &Node, choices: &mut Vec<Vec<Node>>) {
    match node {
        Node::Choice(list) => list.iter().for_each(|node| flatten(node, choices)),
        Node::Sequence(list) if list.len() == 1 => flatten(&list[0], choices),
        Node::Sequence(list) => choices.push(list.clone()),
        Node::Repeat(inner, 0, Some(1)) => {
            flatten(inner, choices);
            choices.push(Vec::new());
        }
        other => choices.push(vec![other.clone()]),
    }
}

fn children(node: &Node) -> &[Node] {
    match node {
        Node::Text(_) | Node::Class(_) | Node::Rule(_) => &[],
        Node::Sequence(list) | Node::Choice(list) => list,
        Node::Repeat(inner, ..) => std::slice::from_ref(inner),
    }
}

fn mentions(node: &Node, number: usize) -> bool {
    *node == Node::Rule(number) || children(node).iter().any(|child| mentions(child, number))
}

/// Which rules never lead back to themselves, nor to one that does: found from the leaves upwards.
fn regular(bodies: &[Node]) -> Vec<bool> {
    fn holds(node: &Node, known: &[bool]) -> bool {
        match node {
            Node::Rule(number) => known[*number],
            other => children(other).iter().all(|child| holds(child, known)),
        }
    }
    grown(bodies, holds)
}

/// The smallest set of rules that is closed under `holds`.
fn grown(bodies: &[Node], holds: fn(&Node, &[bool]) -> bool) -> Vec<bool> {
    let mut known = vec![false; bodies.len()];
    loop {
        let more: Vec<usize> =
            (0..bodies.len()).filter(|&n| !known[n] && holds(&bodies[n], &known)).collect();
        if more.is_empty() {
            return known;
        }
        more.into_iter().for_each(|number| known[number] = true);
    }
}

/// A character inside of a regular expression, in or out of a class.
pub(crate) fn escaped(character: char) -> String {
    if character.is_ascii_alphanumeric() {
        return character.to_string();
    }
    format!("\\x{{{:x}}}", u32::from(character))
}

/// The first letter of a name: the compiler tells terminals from rules by it.
fn letter(regular: bool) -> char {
    if regular { 'T' } else { 'r' }
}

fn write_node(node: &Node, regular: &[bool], out: &mut String) {
    match node {
        Node::Text(text) if text.is_empty() => out.push_str("\"\""),
        Node::Text(text) => {
            out.push('/');
            text.chars().for_each(|c| out.push_str(&escaped(c)));
            out.push('/');
        }
        Node::Class(class) => {
            let _ = write!(out, "/{class}/");
        }
        Node::Rule(number) => {
            let _ = write!(out, "{}{number}", letter(regular[*number]));
        }
        Node::Sequence(list) if list.is_empty() => out.push_str("\"\""),
        Node::Sequence(list) => write_list(list, " ", regular, out),
        Node::Choice(list) => write_list(list, " | ", regular, out),
        Node::Repeat(inner, least, most) => {
            out.push('(');
            write_node(inner, regular, out);
            out.push(')');
            let _ = match (least, most) {
                (0, None) => write!(out, "*"),
                (1, None) => write!(out, "+"),
                (0, Some(1)) => write!(out, "?"),
                (least, Some(most)) => write!(out, "{{{least},{most}}}"),
                (least, None) => write!(out, "{{{least},}}"),
            };
        }
    }
}

fn write_list(list: &[Node], between: &str, regular: &[bool], out: &mut String) {
    if let [one] = list {
        return write_node(one, regular, out);
    }
    out.push('(');
    for (index, node) in list.iter().enumerate() {
        if index > 0 {
            out.push_str(between);
        }
        write_node(node, regular, out);
    }
    out.push(')');
}

#[cfg(test)]
mod tests {
    use super::super::gbnf::to_lark;

    #[test]
    fn regular_rules_become_terminals() {
        let lark = to_lark(
            "root ::= \"(\" ws root? \")\" | num\nnum ::= \"-\"? [0-9]+\nws ::= ([ \\n] ws)?\n",
        )
        .expect("valid");
        let lines: Vec<&str> = lark.lines().collect();
        assert_eq!(lines[0], "start: r0");
        assert_eq!(lines[1], r"r0: ((/\x{28}/ T1 (r0)? /\x{29}/) | T2)");
        assert!(lines.contains(&r#"T1: ((/[\x{20}\x{a}]/)* "")"#), "{lark}");
        assert!(lines.contains(&r"T2: ((/\x{2d}/)? (/[0-9]/)+)"), "{lark}");
    }

    #[test]
    fn rules_that_lead_back_to_themselves_stay_rules() {
        let lark = to_lark("root ::= a\na ::= \"x\" b \"y\"\nb ::= a | \"\"\n").expect("valid");
        assert!(lark.contains("r1:") && lark.contains("r2:"), "{lark}");
    }
}
