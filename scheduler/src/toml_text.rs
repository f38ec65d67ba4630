//! TOML with errors that name the line, the key and its value, and the nearest valid key.

use serde::de::DeserializeOwned;

use crate::nearest;

/// TOML that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}, line {line}: {text:?}: {problem}{}", hint(.near))]
pub struct TomlError {
    /// Which text.
    pub what: String,
    /// Line, from 1.
    pub line: usize,
    /// The line itself: key and value.
    pub text: String,
    /// What was expected and what came.
    pub problem: String,
    /// The valid key most like an unknown one.
    pub near: Option<String>,
}

fn hint(near: &Option<String>) -> String {
    near.as_ref().map(|key| format!("; did you mean {key:?}?")).unwrap_or_default()
}

/// Reads TOML text; `what` names it in errors.
pub fn read<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, TomlError> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start).min(text.len());
        let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count();
        let problem = error.message().to_owned();
        TomlError {
            what: what.to_owned(),
            line: line + 1,
            text: text.lines().nth(line).unwrap_or("").trim().to_owned(),
            near: nearest_key(&problem),
            problem,
        }
    })
}

/// The key that was meant, from serde's message: "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let got = quoted.next()?;
    nearest(got, quoted).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its errors are looked at")]
    struct Two {
        bandwidth: f64,
        latency: Option<f64>,
    }

    #[test]
    fn errors_name_line_value_and_nearest_key() {
        let fail = |text| read::<Two>("a profile", text).expect_err("wrong").to_string();
        let got = fail("# first\nbandwith = 3\n");
        assert!(got.starts_with("a profile, line 2: \"bandwith = 3\": unknown field"), "{got}");
        assert!(got.ends_with("did you mean \"bandwidth\"?"), "{got}");
        let got = fail("latency = 1");
        assert!(got.contains("missing field `bandwidth`"), "{got}");
        let got = fail("bandwidth = 'fast'");
        assert!(got.contains("bandwidth = 'fast'") && got.contains("expected f64"), "{got}");
    }
}
