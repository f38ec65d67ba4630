//! What a session asks this provider to do wrong.
//!
//! | option | effect |
//! |---|---|
//! | `refuse` | op types, with commas between, that it does not take; `*` for all |
//! | `compile_ms`, `run_ms` | a compilation, a run takes so much longer |
//! | `fail` | fails in `create`, `capability`, `compile` or `run` |
//! | `fail_after_runs` | every run after so many fails with "device lost" |
//! | `abort` | ends the process in `compile` or `run`, as a crashing driver does |
//!
//! They are options of the provider (`with_devices(devices, options)`); a session has them as
//! `ep.trefoiltest.NAME`.

use std::ffi::{CString, c_char};
use std::time::Duration;

use ort_sys::OrtSessionOptions;

use crate::ffi::{Api, call};
use crate::provider::NAME;

/// A place where this provider can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Create,
    Capability,
    Compile,
    Run,
}

impl Place {
    fn of(name: &str) -> Result<Self, String> {
        match name {
            "create" => Ok(Self::Create),
            "capability" => Ok(Self::Capability),
            "compile" => Ok(Self::Compile),
            "run" => Ok(Self::Run),
            other => Err(format!("expected create, capability, compile or run, got {other:?}")),
        }
    }
}

/// The faults of one session.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Faults {
    refuse: Vec<String>,
    compile_delay: Duration,
    run_delay: Duration,
    fail: Option<Place>,
    fail_after_runs: Option<u64>,
    abort: Option<Place>,
}

impl Faults {
    /// Those of a session's options.
    pub(crate) fn read(api: Api, options: *const OrtSessionOptions) -> Result<Self, String> {
        let option = |name: &str| entry(api, options, &format!("ep.{NAME}.{name}"));
        Self::parse(&option)
    }

    fn parse(option: &dyn Fn(&str) -> Result<Option<String>, String>) -> Result<Self, String> {
        let number = |name: &str| match option(name)? {
            Some(text) => match text.parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(format!("option {name}: expected a number, got {text:?}")),
            },
            None => Ok(None),
        };
        let place = |name: &str| option(name)?.map(|text| Place::of(&text)).transpose();
        let delay =
            |name: &str| number(name).map(|number| Duration::from_millis(number.unwrap_or(0)));
        let refuse = option("refuse")?.unwrap_or_default();
        Ok(Self {
            refuse: refuse.split(',').filter(|op| !op.is_empty()).map(str::to_owned).collect(),
            compile_delay: delay("compile_ms")?,
            run_delay: delay("run_ms")?,
            fail: place("fail")?,
            fail_after_runs: number("fail_after_runs")?,
            abort: place("abort")?,
        })
    }

    /// Is this op to be declined?
    pub(crate) fn refuses(&self, op: &str) -> bool {
        self.refuse.iter().any(|refused| refused == "*" || refused == op)
    }

    /// Does what is asked for at a place; `runs` is the number of runs before this one.
    pub(crate) fn at(&self, place: Place, runs: u64) -> Result<(), String> {
        if self.abort == Some(place) {
            std::process::abort();
        }
        let delay = match place {
            Place::Compile => self.compile_delay,
            Place::Run => self.run_delay,
            Place::Create | Place::Capability => Duration::ZERO,
        };
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        if self.fail == Some(place) {
            return Err(format!("failure asked for in {place:?}").to_lowercase());
        }
        if place == Place::Run && self.fail_after_runs.is_some_and(|most| runs >= most) {
            return Err("device lost".to_owned());
        }
        Ok(())
    }
}

/// An entry of a session's options.
pub(crate) fn entry(
    api: Api,
    options: *const OrtSessionOptions,
    key: &str,
) -> Result<Option<String>, String> {
    let key = CString::new(key).map_err(|error| error.to_string())?;
    let mut there = 0;
    call!(api, HasSessionConfigEntry(options, key.as_ptr(), &mut there))?;
    if there == 0 {
        return Ok(None);
    }
    let mut size = 0;
    call!(api, GetSessionConfigEntry(options, key.as_ptr(), std::ptr::null_mut(), &mut size))?;
    let mut text = vec![0u8; size];
    let place = text.as_mut_ptr().cast::<c_char>();
    call!(api, GetSessionConfigEntry(options, key.as_ptr(), place, &mut size))?;
    // The size counts the zero at the end.
    text.truncate(size.saturating_sub(1));
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Faults, String> {
        let find = |name: &str| pairs.iter().find(|pair| pair.0 == name);
        Faults::parse(&|name: &str| Ok(find(name).map(|pair| pair.1.to_owned())))
    }

    #[test]
    fn options_are_read_and_misfits_named() {
        assert_eq!(parsed(&[]), Ok(Faults::default()));
        let faults = parsed(&[("refuse", "MatMul,Add"), ("fail_after_runs", "2")]).expect("valid");
        assert!(faults.refuses("Add") && !faults.refuses("Mul"));
        assert_eq!(faults.at(Place::Run, 1), Ok(()));
        assert_eq!(faults.at(Place::Run, 2), Err("device lost".to_owned()));
        assert!(parsed(&[("refuse", "*")]).expect("valid").refuses("anything"));
        let faults = parsed(&[("fail", "compile")]).expect("valid");
        assert_eq!(faults.at(Place::Compile, 0), Err("failure asked for in compile".to_owned()));
        assert_eq!(faults.at(Place::Run, 0), Ok(()));
        assert!(parsed(&[("fail", "sometimes")]).expect_err("no place").contains("sometimes"));
        assert!(parsed(&[("run_ms", "long")]).expect_err("no number").contains("run_ms"));
    }
}
