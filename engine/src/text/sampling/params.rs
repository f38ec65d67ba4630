//! What a request may set, checked.

use serde::{Deserialize, Serialize};

/// Most biases in one request.
const BIASES_MAX: usize = 1024;

/// How tokens are chosen. The default changes nothing: a draw from the model's own distribution.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SamplingParams {
    /// 0..=2; below 1e-6 the most probable token is taken.
    pub temperature: f32,
    /// Keep this many tokens; 0 or −1 keeps all.
    pub top_k: i32,
    /// 0..=1; keep the most probable tokens up to this probability.
    pub top_p: f64,
    /// 0..=1; keep tokens this probable compared to the most probable one.
    pub min_p: f64,
    /// 0..=1; keep the most typical tokens up to this probability.
    pub typical_p: f64,
    /// Above 0, up to 10; divides positive logits of recent tokens and multiplies negative ones.
    pub repeat_penalty: f32,
    /// How many recent tokens of prompt and reply count as such; −1 for all.
    pub repeat_last_n: i32,
    /// −2..=2; subtracted for each time that a token was generated.
    pub frequency_penalty: f32,
    /// −2..=2; subtracted once from every token that was generated.
    pub presence_penalty: f32,
    /// Token id and what is added to its logit, −100..=100; at most 1024.
    pub logit_bias: Vec<(u32, f32)>,
    /// No end token before this many tokens.
    pub min_tokens: u32,
    /// No end token at all.
    pub ignore_eos: bool,
    /// `None`: no log probabilities; else how many tokens are listed, 0..=20.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
        }
    }
}

/// A parameter outside of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field}: expected {expected}, got {got}")]
pub struct ParamError {
    /// Name of the field, as requests spell it.
    pub field: &'static str,
    /// What is accepted.
    pub expected: String,
    /// What came.
    pub got: String,
}

impl SamplingParams {
    /// Checks all ranges. `vocabulary`: number of token ids, for the biases.
    ///
    /// # Errors
    /// The first field that is outside of its range.
    pub fn validate(&self, vocabulary: usize) -> Result<(), ParamError> {
        // written so that not-a-number is outside of every range
        let check = |field, expected: &str, fine: bool, got: &dyn std::fmt::Display| {
            if fine {
                return Ok(());
            }
            Err(ParamError { field, expected: expected.to_owned(), got: got.to_string() })
        };
        let (unit, penalty) = (0.0..=1.0, -2.0..=2.0);
        let t = self.temperature;
        check("temperature", "0 to 2", (0.0..=2.0).contains(&t), &t)?;
        check("top_k", "-1 or more", self.top_k >= -1, &self.top_k)?;
        check("top_p", "0 to 1", unit.contains(&self.top_p), &self.top_p)?;
        check("min_p", "0 to 1", unit.contains(&self.min_p), &self.min_p)?;
        check("typical_p", "0 to 1", unit.contains(&self.typical_p), &self.typical_p)?;
        let r = self.repeat_penalty;
        check("repeat_penalty", "more than 0, up to 10", r > 0.0 && r <= 10.0, &r)?;
        let n = self.repeat_last_n;
        check("repeat_last_n", "-1 or more", n >= -1, &n)?;
        let f = self.frequency_penalty;
        check("frequency_penalty", "-2 to 2", penalty.contains(&f), &f)?;
        let p = self.presence_penalty;
        check("presence_penalty", "-2 to 2", penalty.contains(&p), &p)?;
        let biases = self.logit_bias.len();
        check("logit_bias", "at most 1024 entries", biases <= BIASES_MAX, &biases)?;
        for &(id, bias) in &self.logit_bias {
            let ids = format!("token ids below {vocabulary}");
            check("logit_bias", &ids, (id as usize) < vocabulary, &id)?;
            let fine = (-100.0..=100.0).contains(&bias);
            check("logit_bias", "values of -100 to 100", fine, &bias)?;
        }
        let top = self.logprobs.unwrap_or(0);
        check("top_logprobs", "0 to 20", top as usize <= super::TOP_LOGPROBS_MAX, &top)
    }

    /// Whether the most probable token is taken, without chance.
    pub fn is_greedy(&self) -> bool {
        self.temperature < 1e-6 || self.top_k == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_by_name() {
        let check = |change: &dyn Fn(&mut SamplingParams)| {
            let mut params = SamplingParams::default();
            change(&mut params);
            params.validate(100).map_err(|error| error.to_string())
        };
        assert_eq!(check(&|_| ()), Ok(()));
        assert_eq!(
            check(&|p| p.temperature = 2.5),
            Err("temperature: expected 0 to 2, got 2.5".to_owned())
        );
        assert_eq!(
            check(&|p| p.logit_bias = vec![(99, 1.0), (100, 1.0)]),
            Err("logit_bias: expected token ids below 100, got 100".to_owned())
        );
        let outside: [&dyn Fn(&mut SamplingParams); 12] = [
            &|p| p.temperature = f32::NAN,
            &|p| p.top_k = -2,
            &|p| p.top_p = -0.1,
            &|p| p.min_p = 1.1,
            &|p| p.typical_p = f64::NAN,
            &|p| p.repeat_penalty = 0.0,
            &|p| p.repeat_last_n = -2,
            &|p| p.frequency_penalty = 2.1,
            &|p| p.presence_penalty = f32::INFINITY,
            &|p| p.logit_bias = vec![(0, 101.0)],
            &|p| p.logit_bias = vec![(0, 1.0); 1025],
            &|p| p.logprobs = Some(21),
        ];
        for change in outside {
            assert!(check(change).is_err());
        }
    }
}
