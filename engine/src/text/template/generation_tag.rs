//! The block tag `generation`, which transformers adds to mark the assistant's words for
//! training. It prints its body; all that matters here is that it parses.

/// Rewrites `{% generation %}` … `{% endgeneration %}` to a block that minijinja knows and that
/// acts the same: it opens a scope and prints its body. Everything else stays as it is, line
/// numbers too.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%").into_iter().chain(rest.find("{#")).min() {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        if tag.starts_with("{#") {
            let end = tag.find("#}").map_or(tag.len(), |end| end + 2);
            out.push_str(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let name_start = tag.len() - tag[2..].trim_start_matches(['-', '+']).trim_start().len();
        let name_length = tag[name_start..]
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(tag.len() - name_start);
        let name_end = name_start + name_length;
        out.push_str(&tag[..name_start]);
        match &tag[name_start..name_end] {
            "generation" => out.push_str("with"),
            "endgeneration" => out.push_str("endwith"),
            "raw" => {
                let end = end_of_raw(tag).unwrap_or(tag.len());
                out.push_str(&tag[name_start..end]);
                rest = &tag[end..];
                continue;
            }
            other => out.push_str(other),
        }
        rest = &tag[name_end..];
    }
    out.push_str(rest);
    out
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(tag: &str) -> Option<usize> {
    let mut from = 2;
    while let Some(found) = tag[from..].find("{%") {
        let start = from + found;
        if tag[start + 2..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw") {
            return Some(start);
        }
        from = start + 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn only_the_tag_itself_changes() {
        for (source, expected) in [
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{{ generation }} generation {% if generation %}", "same"),
            ("{# {% generation %} #}{% generation %}", "{# {% generation %} #}{% with %}"),
            (
                "{% raw %}{% generation %}{% endraw %}{%generation%}",
                "{% raw %}{% generation %}{% endraw %}{%with%}",
            ),
            ("{% generations %}", "same"),
            ("{%", "same"),
            ("{% raw %}{%", "same"),
            ("ä{#", "same"),
        ] {
            let expected = if expected == "same" { source } else { expected };
            assert_eq!(rewrite(source), expected);
        }
    }
}
