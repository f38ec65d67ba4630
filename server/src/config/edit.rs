//! Setting a key in a file's text, with everything else in it left as it is.

use std::path::Path as FilePath;

use super::ConfigError;
use super::layer::{Layer, Path, place_of, written};

/// The path of a key by its name, such as `server.port` or `models."a.b".ctx`.
pub(crate) fn path_of(name: &str) -> Option<Path> {
    // A key is what TOML takes for one.
    let table: toml::Table = toml::from_str(&format!("{name} = 0")).ok()?;
    let mut path = Path::new();
    let mut value = &toml::Value::Table(table);
    while let toml::Value::Table(table) = value {
        let (key, inner) = table.iter().next()?;
        path.push(key.clone());
        value = inner;
    }
    (path.len() > 1).then_some(path)
}

/// The text of `file` with the key at `path` set to `value`: TOML, else a text.
pub(crate) fn set(
    file: &FilePath,
    text: &str,
    path: &[String],
    value: &str,
) -> Result<String, ConfigError> {
    let by_hand = || ConfigError::ByHand { path: file.to_path_buf(), key: written(path) };
    let given = Layer::of_variable("the value given", path, value)?;
    let (_, value, _) = given.values.into_iter().next().ok_or_else(by_hand)?;
    let before = Layer::of_file(file, text)?;
    let new = match place_of(text, path) {
        Some(place) => {
            let (start, end) = (text.get(..place.start), text.get(place.end..));
            let (start, end) = start.zip(end).ok_or_else(by_hand)?;
            format!("{start}{value}{end}")
        }
        None => insert(text, path, &value),
    };
    // Whatever the text was like: the key has the value now, and nothing else has changed.
    let after = Layer::of_file(file, &new).map_err(|_| by_hand())?;
    let values = |layer: Layer| {
        let values = layer.values.into_iter().map(|(path, value, _)| (path, value));
        values.collect::<std::collections::BTreeMap<_, _>>()
    };
    let mut wanted = values(before);
    wanted.insert(path.to_vec(), value);
    if values(after) == wanted { Ok(new) } else { Err(by_hand()) }
}

/// Adds a key to its section, and the section where there is none.
fn insert(text: &str, path: &[String], value: &toml::Value) -> String {
    let (key, sections) = path.split_last().expect("paths have a section and a key");
    let line = format!("{} = {value}\n", written(std::slice::from_ref(key)));
    let header = format!("[{}]", written(sections));
    let mut at = 0;
    for each in text.split_inclusive('\n') {
        at += each.len();
        let plain = each.split('#').next().unwrap_or_default().trim();
        if plain == header {
            let gap = if each.ends_with('\n') { "" } else { "\n" };
            return format!("{}{gap}{line}{}", &text[..at], &text[at..]);
        }
    }
    let gap = match text {
        "" => "",
        _ if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    format!("{text}{gap}{header}\n{line}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(text: &str, key: &str, value: &str) -> Result<String, String> {
        let path = path_of(key).ok_or("no key")?;
        set(FilePath::new("x.toml"), text, &path, value).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_replaced_added_and_appended_and_remarks_stay() {
        let text = "# mine\n[server] # net\nport = 1 # was 2\n\n[policy]\nobjective = \"energy\"\n";
        let same = |got: Result<String, String>, want: &str| assert_eq!(got.expect("sets"), want);
        same(edited(text, "server.port", "80"), &text.replace("port = 1", "port = 80"));
        same(edited(text, "policy.objective", "latency"), &text.replace("energy", "latency"));
        let more = text.replace("# net\n", "# net\nhost = \"::1\"\n");
        same(edited(text, "server.host", "::1"), &more);
        let end = format!("{text}\n[models.\"a.b\"]\nctx = 5\n");
        same(edited(text, "models.\"a.b\".ctx", "5"), &end);
        same(edited("", "engine.threads", "3"), "[engine]\nthreads = 3\n");
        same(edited("[engine]", "engine.threads", "3"), "[engine]\nthreads = 3\n");
        same(edited("server.port = 1", "server.port", "2"), "server.port = 2");
        let pins = "[{ match = \"head\", device = \"cpu0\" }]";
        assert!(edited(text, "policy.pins", pins).expect("sets").contains("pins = [{"));
    }

    #[test]
    fn what_is_wrong_is_not_written() {
        for (text, key, value, part) in [
            ("", "server.prt", "1", "did you mean \"port\"?"),
            ("", "server.port", "many", "u16"),
            ("", "port", "1", "no key"),
            ("", "a b", "1", "no key"),
            ("[server]\nprt = 1", "server.port", "1", "line 2"),
            ("server = { port = 1 }", "server.host", "x", "by hand"),
            ("[[policy.pins]]\nmatch = 'a'\ndevice = 'b'", "policy.pins", "[]", "by hand"),
        ] {
            let got = edited(text, key, value).expect_err(key);
            assert!(got.contains(part), "{text:?} {key}: {got}");
        }
    }
}
