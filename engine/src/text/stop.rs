//! Stop strings: text at which a reply ends, found in the bytes as they are generated.

use std::sync::Arc;

/// Most stop strings in one request.
pub const STOPS_MAX: usize = 16;

/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// Too many.
    #[error("stop: expected at most {STOPS_MAX} strings, got {got}")]
    TooMany {
        /// How many there were.
        got: usize,
    },
    /// One is empty or too long.
    #[error("stop: expected strings of 1 to {STOP_BYTES_MAX} bytes, got {got} bytes at {index}")]
    Length {
        /// Which of the strings, from 0.
        index: usize,
        /// Its length in bytes.
        got: usize,
    },
}

/// The stop strings of a request. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct StopStrings(Arc<[Box<[u8]>]>);

impl StopStrings {
    /// Checks and keeps `strings`.
    ///
    /// # Errors
    /// There are too many, or one is empty or too long.
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Result<Self, StopError> {
        if strings.len() > STOPS_MAX {
            return Err(StopError::TooMany { got: strings.len() });
        }
        for (index, string) in strings.iter().enumerate() {
            let got = string.as_ref().len();
            if !(1..=STOP_BYTES_MAX).contains(&got) {
                return Err(StopError::Length { index, got });
            }
        }
        Ok(Self(strings.iter().map(|string| Box::from(string.as_ref().as_bytes())).collect()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A stop string that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopHit {
    /// Which of the strings, from 0.
    pub index: usize,
    /// Where it begins, in bytes from the start of the reply.
    pub start: u64,
}

/// Looks for stop strings in the bytes of one reply.
///
/// Bytes that may be the beginning of a stop string are held back until it is clear that they are
/// not. The reply ends with the first token that completes any stop string; if it completes
/// several, the one that begins first counts, of those the longest.
#[derive(Debug)]
pub struct StopMatcher {
    stops: StopStrings,
    /// Bytes that were not passed on yet.
    held: Vec<u8>,
    /// Bytes that were passed on.
    released: u64,
    hit: Option<StopHit>,
}

impl StopMatcher {
    /// For a new reply.
    pub fn new(stops: StopStrings) -> Self {
        Self { stops, held: Vec::new(), released: 0, hit: None }
    }

    /// Takes the bytes of a token and appends to `out` what may be sent now. Once a stop string is
    /// found, nothing from its start on is ever sent.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<StopHit> {
        if self.hit.is_some() {
            return self.hit;
        }
        self.held.extend_from_slice(bytes);
        let send = match self.find() {
            Some((start, index)) => {
                self.hit = Some(StopHit { index, start: self.released + start as u64 });
                start
            }
            None => self.held.len() - self.pending(),
        };
        self.release(send, out);
        if self.hit.is_some() {
            self.held.clear();
        }
        self.hit
    }

    /// Ends the reply: what was held back is sent.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(self.held.len(), out);
    }

    /// The stop string that was found.
    pub fn hit(&self) -> Option<StopHit> {
        self.hit
    }

    fn release(&mut self, bytes: usize, out: &mut Vec<u8>) {
        out.extend(self.held.drain(..bytes));
        self.released += bytes as u64;
    }

    /// The first place where a stop string begins, and the longest one there.
    fn find(&self) -> Option<(usize, usize)> {
        (0..self.held.len()).find_map(|start| {
            let here = self.stops.0.iter().enumerate();
            let here = here.filter(|(_, stop)| self.held[start..].starts_with(stop));
            // of equal strings the first counts
            let longest = here.rev().max_by_key(|(_, stop)| stop.len());
            longest.map(|(index, _)| (start, index))
        })
    }

    /// Length of the longest tail that a stop string begins with.
    fn pending(&self) -> usize {
        let longest = self.stops.0.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        (1..=longest.min(self.held.len()))
            .rev()
            .find(|&length| {
                let tail = &self.held[self.held.len() - length..];
                self.stops.0.iter().any(|stop| stop.starts_with(tail))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(StopStrings::new(stops).expect("valid"))
    }

    /// Pushes tokens one by one; what each step sent, and what was found.
    fn run(stops: &[&str], tokens: &[&str]) -> (Vec<String>, Option<StopHit>) {
        let mut matcher = matcher(stops);
        let mut sent = Vec::new();
        for token in tokens {
            let mut out = Vec::new();
            matcher.push(token.as_bytes(), &mut out);
            sent.push(String::from_utf8_lossy(&out).into_owned());
        }
        let mut out = Vec::new();
        matcher.finish(&mut out);
        sent.push(String::from_utf8_lossy(&out).into_owned());
        (sent, matcher.hit())
    }

    #[test]
    fn stops_are_found_across_tokens() {
        let hit = |index, start| Some(StopHit { index, start });
        let strings = |parts: &[&str]| parts.iter().map(|p| p.to_string()).collect::<Vec<_>>();
        assert_eq!(
            run(&["###"], &["a#", "#", "#b", "c"]),
            (strings(&["a", "", "", "", ""]), hit(0, 1))
        );
        assert_eq!(run(&["###"], &["a#", "#b", "#"]), (strings(&["a", "##b", "", "#"]), None));
        assert_eq!(run(&["aab"], &["aa", "aab"]), (strings(&["", "aa", ""]), hit(0, 2)));
        assert_eq!(run(&["bc", "abcd", "ab"], &["xabcd"]), (strings(&["x", ""]), hit(1, 1)));
        assert_eq!(run(&["bc", "abcd"], &["xabc", "d"]), (strings(&["xa", "", ""]), hit(0, 2)));
        assert_eq!(run(&["é"], &["caf", "é!"]), (strings(&["caf", "", ""]), hit(0, 3)));
        assert_eq!(run(&[], &["a", "b"]), (strings(&["a", "b", ""]), None));
    }

    #[test]
    fn limits_are_checked() {
        assert_eq!(StopStrings::new(&[""; 1]).unwrap_err(), StopError::Length { index: 0, got: 0 });
        assert_eq!(StopStrings::new(&["a"; 17]).unwrap_err(), StopError::TooMany { got: 17 });
        let long = "a".repeat(257);
        assert_eq!(
            StopStrings::new(&["a", &long]).unwrap_err(),
            StopError::Length { index: 1, got: 257 }
        );
        assert!(StopStrings::new(&["a".repeat(256)]).is_ok());
    }

    proptest! {
        /// Sent in pieces, the text is the one before the first stop string; and nothing is held
        /// back that cannot become one.
        #[test]
        fn pieces_make_the_text(
            tokens in prop::collection::vec("[ab]{1,4}", 0..12),
            stops in prop::collection::vec("[ab]{1,5}", 0..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut matcher = matcher(&stops);
            let (mut seen, mut sent) = (String::new(), Vec::new());
            for token in &tokens {
                seen.push_str(token);
                let hit = matcher.push(token.as_bytes(), &mut sent);
                let first = (0..seen.len())
                    .find(|&start| stops.iter().any(|stop| seen[start..].starts_with(stop)));
                prop_assert_eq!(hit.map(|hit| hit.start), first.map(|start| start as u64));
                if let Some(start) = first {
                    prop_assert_eq!(&sent[..], &seen.as_bytes()[..start]);
                    return Ok(());
                }
                let held = &seen[sent.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
            matcher.finish(&mut sent);
            prop_assert_eq!(&sent[..], seen.as_bytes());
        }
    }
}
