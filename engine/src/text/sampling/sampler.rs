//! The chain of steps for one sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::filters::Filters;
use super::logprobs::Logprobs;
use super::params::{ParamError, SamplingParams};
use super::random::uniform;
use super::select;

/// Tokens for which memory is set aside at the start, where counts or recent tokens are kept.
const TOKENS_EXPECTED: usize = 1024;

/// What sampling needs to know of a model.
#[derive(Debug, Clone)]
pub struct SamplerVocabulary {
    /// Number of token ids; logits from there on are padding and never chosen.
    pub tokens: usize,
    /// Taken where nothing else may be: the model's end token.
    pub eos: u32,
    /// All tokens that end a turn.
    pub ends: Arc<[u32]>,
}

/// Chooses the tokens of one sequence. After the first few tokens it allocates nothing.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocabulary: SamplerVocabulary,
    seed: i64,
    choice: u64,
    /// Number of tokens accepted so far.
    position: u64,
    /// The last `repeat_last_n` tokens of prompt and reply, and how often each is among them.
    recent: VecDeque<u32>,
    recent_counts: HashMap<u32, u32>,
    /// How often each token was generated.
    output_counts: HashMap<u32, u32>,
    filters: Filters,
    logprobs: Logprobs,
}

impl Sampler {
    /// For choice number `choice` (from 0) of a request, after `prompt`.
    ///
    /// # Errors
    /// A parameter is outside of its range.
    pub fn new(
        params: SamplingParams,
        vocabulary: SamplerVocabulary,
        seed: i64,
        choice: u64,
        prompt: &[u32],
    ) -> Result<Self, ParamError> {
        params.validate(vocabulary.tokens)?;
        let mut sampler = Self {
            params,
            vocabulary,
            seed,
            choice,
            position: 0,
            recent: VecDeque::new(),
            recent_counts: HashMap::new(),
            output_counts: HashMap::new(),
            filters: Filters::default(),
            logprobs: Logprobs::default(),
        };
        if let Some(length) = sampler.recent_length() {
            let tail = &prompt[prompt.len().saturating_sub(length)..];
            let capacity = length.min(tail.len() + TOKENS_EXPECTED) + 1;
            sampler.recent.reserve(capacity);
            sampler.recent_counts.reserve(capacity);
            tail.iter().for_each(|&id| sampler.remember(id, length));
        }
        if sampler.counts_output() {
            sampler.output_counts.reserve(TOKENS_EXPECTED);
        }
        Ok(sampler)
    }

    /// Chooses the next token and accepts it. `logits` has one entry for each token id, padding
    /// allowed; it is changed. `mask`: bit `id % 32` of word `id / 32` tells whether a token may
    /// be chosen; ids beyond it may not.
    pub fn sample(&mut self, logits: &mut [f32], mask: Option<&[u32]>) -> u32 {
        let id = self.choose(logits, mask);
        self.accept(id);
        id
    }

    /// Chooses the next token as [`Sampler::sample`], without accepting it.
    pub fn choose(&mut self, logits: &mut [f32], mask: Option<&[u32]>) -> u32 {
        let tokens = self.vocabulary.tokens.min(logits.len());
        let logits = &mut logits[..tokens];
        tame(logits);
        if let Some(count) = self.params.logprobs {
            self.logprobs.read(logits, count as usize);
        }
        self.change(logits, mask);
        let params = &self.params;
        if params.is_greedy() {
            return select::argmax(logits).unwrap_or(self.vocabulary.eos);
        }
        let Some(mut pass) = self.filters.begin(logits) else { return self.vocabulary.eos };
        if let Ok(k) = usize::try_from(params.top_k)
            && (1..logits.len()).contains(&k)
        {
            pass.top_k(k);
        }
        if params.typical_p < 1.0 {
            pass.typical_p(params.typical_p);
        }
        if params.top_p < 1.0 {
            pass.top_p(params.top_p);
        }
        if params.min_p > 0.0 {
            pass.min_p(params.min_p);
        }
        pass.draw(params.temperature, uniform(self.seed, self.choice, self.position))
    }

    /// How many of the largest logits the choices depend on, whatever the others are; `None` where all
    /// count. Of logits with padding, the largest may be padding: so it says nothing of those.
    pub fn largest(&self) -> Option<usize> {
        let params = &self.params;
        let plain = params.logprobs.is_none()
            && params.logit_bias.is_empty()
            && !params.ignore_eos
            && params.min_tokens == 0
            && self.recent_length().is_none()
            && !self.counts_output();
        match usize::try_from(params.top_k) {
            _ if !plain => None,
            _ if params.is_greedy() => Some(1),
            Ok(count) if count > 0 => Some(count),
            _ => None,
        }
    }

    /// Takes note of a token that became part of the reply, chosen here or given.
    pub fn accept(&mut self, id: u32) {
        self.position += 1;
        if let Some(length) = self.recent_length() {
            self.remember(id, length);
        }
        if self.counts_output() {
            *self.output_counts.entry(id).or_insert(0) += 1;
        }
    }

    /// Log probabilities of the last step; `None` where none were asked for.
    pub fn logprobs(&self) -> Option<&Logprobs> {
        self.params.logprobs.map(|_| &self.logprobs)
    }

    /// Number of tokens accepted so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The parameters in use.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Biases, masks and penalties.
    fn change(&self, logits: &mut [f32], mask: Option<&[u32]>) {
        let params = &self.params;
        for &(id, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        if let Some(mask) = mask {
            apply_mask(logits, mask);
        }
        if params.ignore_eos || self.position < u64::from(params.min_tokens) {
            for &id in self.vocabulary.ends.iter().chain([&self.vocabulary.eos]) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for &id in self.recent_counts.keys() {
            if let Some(logit) = logits.get_mut(id as usize) {
                let r = params.repeat_penalty;
                let penalised = if *logit > 0.0 { *logit / r } else { *logit * r };
                *logit = penalised.min(f32::MAX);
            }
        }
        for (&id, &count) in &self.output_counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
            }
        }
    }

    /// How many recent tokens are kept; `None` where they make no difference.
    fn recent_length(&self) -> Option<usize> {
        if self.params.repeat_penalty == 1.0 || self.params.repeat_last_n == 0 {
            return None;
        }
        Some(usize::try_from(self.params.repeat_last_n).unwrap_or(usize::MAX))
    }

    fn counts_output(&self) -> bool {
        self.params.frequency_penalty != 0.0 || self.params.presence_penalty != 0.0
    }

    fn remember(&mut self, id: u32, length: usize) {
        self.recent.push_back(id);
        *self.recent_counts.entry(id).or_insert(0) += 1;
        if self.recent.len() > length
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.recent_counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.recent_counts.remove(&oldest);
            }
        }
    }
}

/// Makes not-a-number and infinity, which only a fault can give, into numbers with an order.
fn tame(logits: &mut [f32]) {
    for logit in logits {
        let low = if logit.is_nan() { f32::NEG_INFINITY } else { *logit };
        *logit = if low > f32::MAX { f32::MAX } else { low };
    }
}

/// Rules out the tokens whose bit is not set.
fn apply_mask(logits: &mut [f32], mask: &[u32]) {
    for (index, chunk) in logits.chunks_mut(32).enumerate() {
        match mask.get(index).copied().unwrap_or(0) {
            u32::MAX => {}
            0 => chunk.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reference;
    use super::super::{LOGPROB_FLOOR, TOP_LOGPROBS_MAX};
    use super::*;

    fn vocabulary(tokens: usize) -> SamplerVocabulary {
        SamplerVocabulary { tokens, eos: 2, ends: Arc::new([2, 3]) }
    }

    fn sampler(params: SamplingParams, tokens: usize, prompt: &[u32]) -> Sampler {
        Sampler::new(params, vocabulary(tokens), 7, 1, prompt).expect("valid parameters")
    }

    fn sample(change: impl FnOnce(&mut SamplingParams), logits: &[f32]) -> u32 {
        let mut params = SamplingParams::default();
        change(&mut params);
        sampler(params, logits.len(), &[]).sample(&mut logits.to_vec(), None)
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_largest() {
        let logits = [1.0, 3.0, 2.0, 3.0, f32::NAN];
        assert_eq!(sample(|p| p.temperature = 0.0, &logits), 1);
        assert_eq!(sample(|p| p.top_k = 1, &logits), 1);
        assert_eq!(sample(|p| p.top_p = 0.0, &logits), 1);
        assert_eq!(sample(|p| p.min_p = 1.0, &[0.0, 0.0, 9.0, 0.0]), 2);
    }

    #[test]
    fn the_largest_logits_are_enough_where_it_says_so() {
        let logits: Vec<f32> = (0..500).map(|i| ((i * 37) % 101) as f32 / 9.0).collect();
        let mut by_size: Vec<usize> = (0..logits.len()).collect();
        by_size.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        for (temperature, top_k, want) in [(0.0, 0, 1), (0.8, 1, 1), (0.8, 7, 7), (1.3, 40, 40)] {
            let params = SamplingParams { temperature, top_k, top_p: 0.9, ..Default::default() };
            let mut all = sampler(params.clone(), logits.len(), &[]);
            let mut few = sampler(params, logits.len(), &[]);
            let count = few.largest().expect("no other logit counts");
            assert_eq!(count, want);
            let mut sparse = vec![f32::NEG_INFINITY; logits.len()];
            by_size[..count].iter().for_each(|&at| sparse[at] = logits[at]);
            for _ in 0..20 {
                let want = all.sample(&mut logits.clone(), None);
                assert_eq!(few.sample(&mut sparse.clone(), None), want);
            }
        }
        let change: [fn(&mut SamplingParams); 5] = [
            |p| p.top_k = 0,
            |p| p.repeat_penalty = 1.1,
            |p| p.presence_penalty = 0.5,
            |p| p.logprobs = Some(3),
            |p| p.min_tokens = 2,
        ];
        for change in change {
            let mut params = SamplingParams { top_k: 5, ..SamplingParams::default() };
            change(&mut params);
            assert_eq!(sampler(params, 50, &[]).largest(), None);
        }
    }

    #[test]
    fn bias_mask_and_end_ban_apply() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let logits = [0.0, 1.0, 5.0, 4.0, 3.0, 2.0];
        let biased = SamplingParams { logit_bias: vec![(0, 6.0), (9, 1.0)], ..greedy.clone() };
        assert_eq!(sampler(biased.clone(), 10, &[]).sample(&mut logits.to_vec(), None), 0);
        let banned = SamplingParams { min_tokens: 1, ..greedy.clone() };
        let mut banned = sampler(banned, 6, &[]);
        assert_eq!(banned.sample(&mut logits.to_vec(), None), 4);
        assert_eq!(banned.sample(&mut logits.to_vec(), None), 2);
        let mut masked = sampler(greedy.clone(), 6, &[]);
        assert_eq!(masked.sample(&mut logits.to_vec(), Some(&[0b100010])), 5);
        // nothing left: the end token, banned or not
        let never = SamplingParams { ignore_eos: true, ..greedy };
        assert_eq!(sampler(never, 6, &[]).sample(&mut logits.to_vec(), Some(&[0b100])), 2);
        let warm =
            sampler(SamplingParams::default(), 6, &[]).sample(&mut logits.to_vec(), Some(&[]));
        assert_eq!(warm, 2);
    }

    #[test]
    fn padding_is_never_chosen() {
        let mut greedy = sampler(SamplingParams { top_k: 1, ..SamplingParams::default() }, 4, &[]);
        assert_eq!(greedy.sample(&mut [0.0, 1.0, 0.0, 0.0, 9.0, 9.0], None), 1);
    }

    #[test]
    fn repeats_are_penalised_in_their_window() {
        let params = SamplingParams {
            temperature: 0.0,
            repeat_penalty: 2.0,
            repeat_last_n: 2,
            ..SamplingParams::default()
        };
        // 5 and 6 are recent, 4 is not any more
        let mut sampler = sampler(params, 8, &[4, 5, 6]);
        let logits = [0.0, 1.0, 0.0, 0.0, 3.5, 5.0, 4.0, -1.0];
        assert_eq!(sampler.sample(&mut logits.to_vec(), None), 4);
        // now 6 and 4 are recent
        assert_eq!(sampler.sample(&mut logits.to_vec(), None), 5);
        // negative logits go further down: 4 and 5 are recent
        let logits = [-9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -5.0, -4.5];
        assert_eq!(sampler.sample(&mut logits.to_vec(), None), 5);
    }

    #[test]
    fn counts_are_of_the_reply_only() {
        let params = SamplingParams {
            temperature: 0.0,
            frequency_penalty: 0.5,
            presence_penalty: 1.0,
            ..SamplingParams::default()
        };
        let mut sampler = sampler(params, 3, &[0, 0, 0]);
        let logits = [3.0, 1.4, 0.0];
        let ids: Vec<u32> = (0..4).map(|_| sampler.sample(&mut logits.to_vec(), None)).collect();
        // 3.0, then 1.5, then 1.0 below 1.4, then 1.0 against −0.1
        assert_eq!(ids, [0, 0, 1, 0]);
    }

    #[test]
    fn logprobs_are_of_the_raw_logits() {
        let params = SamplingParams {
            temperature: 0.0,
            logprobs: Some(2),
            logit_bias: vec![(3, 50.0)],
            ..SamplingParams::default()
        };
        let mut sampler = sampler(params, 5, &[]);
        let id = sampler.sample(&mut [1.0, 1.0, 0.0, -1.0, f32::NEG_INFINITY], None);
        assert_eq!(id, 3);
        let logprobs = sampler.logprobs().expect("asked for");
        let log_sum = (2.0 * 1.0_f64.exp() + 1.0 + (-1.0_f64).exp()).ln();
        assert!((logprobs.of(3) - (-1.0 - log_sum)).abs() < 1e-6);
        assert_eq!(logprobs.of(4), LOGPROB_FLOOR);
        let top: Vec<u32> = logprobs.top().iter().map(|entry| entry.id).collect();
        assert_eq!(top, [0, 1]);
        assert!((logprobs.top()[0].logprob - (1.0 - log_sum)).abs() < 1e-6);
        assert!(TOP_LOGPROBS_MAX >= top.len());
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let mut sampler = sampler(SamplingParams::default(), 3, &[]);
        let mut counts = [0_u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut [0.0, 1.0, 2.0], None) as usize] += 1;
        }
        let sum: f64 = (0..3).map(|i| f64::from(i).exp()).sum();
        for (i, &count) in counts.iter().enumerate() {
            let expected = (i as f64).exp() / sum;
            assert!((f64::from(count) / 20_000.0 - expected).abs() < 0.01, "{counts:?}");
        }
    }

    prop_compose! {
        fn any_params()(
            temperature in prop_oneof![Just(0.0_f32), Just(1.0), 0.1_f32..2.0],
            top_k in prop_oneof![Just(0_i32), Just(-1), 1_i32..200],
            top_p in prop_oneof![Just(1.0), Just(0.0), 0.0_f64..1.0],
            min_p in prop_oneof![Just(0.0), 0.0_f64..1.0],
            typical_p in prop_oneof![Just(1.0), Just(0.0), 0.0_f64..1.0],
            repeat_penalty in prop_oneof![Just(1.0_f32), 0.5_f32..3.0],
            repeat_last_n in prop_oneof![Just(-1_i32), 0_i32..5],
            frequency_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
            presence_penalty in prop_oneof![Just(0.0_f32), -2.0_f32..2.0],
            logit_bias in prop::collection::vec((0_u32..40, -10.0_f32..10.0), 0..3),
            min_tokens in 0_u32..3,
        ) -> SamplingParams {
            SamplingParams {
                temperature, top_k, top_p, min_p, typical_p, repeat_penalty, repeat_last_n,
                frequency_penalty, presence_penalty, logit_bias, min_tokens,
                ..SamplingParams::default()
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// The sampler chooses as the specification read word by word. A step where a sum comes
        /// within rounding of a threshold tells nothing and is passed over.
        #[test]
        fn the_sampler_follows_the_specification(
            params in any_params(),
            rows in prop::collection::vec(prop::collection::vec(-30_i16..30, 40..400), 1..5),
            scale in prop_oneof![Just(1.0_f32), Just(0.1), Just(0.013)],
            seed: i64,
            choice in 0_u64..4,
            prompt in prop::collection::vec(0_u32..40, 0..6),
            mask in prop::option::of(prop::collection::vec(any::<u32>(), 1..13)),
        ) {
            let tokens = 40;
            let mut fast = Sampler::new(
                params.clone(), vocabulary(tokens), seed, choice, &prompt,
            ).expect("valid parameters");
            let mut output = Vec::new();
            for row in rows {
                let logits: Vec<f32> = row.iter().map(|&l| f32::from(l) * scale).collect();
                let state = reference::State {
                    params: &params,
                    vocabulary: &vocabulary(tokens),
                    seed,
                    choice,
                    prompt: &prompt,
                    output: &output,
                };
                let expected = reference::choose(&state, &logits, mask.as_deref());
                let got = fast.choose(&mut logits.clone(), mask.as_deref());
                if expected.margin > 1e-5 {
                    prop_assert_eq!(got, expected.id);
                }
                fast.accept(got);
                output.push(got);
            }
        }

        /// Large vocabularies go other ways inside: partial selection, bands.
        #[test]
        fn large_vocabularies_are_no_different(
            mut params in any_params(), seed: i64, spread in 0.5_f32..12.0,
        ) {
            params.logit_bias.clear();
            let tokens = 5000;
            let logits: Vec<f32> = (0..tokens as u64)
                .map(|i| (uniform(seed, 3, i).ln() as f32) * spread)
                .collect();
            let state = reference::State {
                params: &params,
                vocabulary: &vocabulary(tokens),
                seed,
                choice: 0,
                prompt: &[1, 2, 3],
                output: &[],
            };
            let expected = reference::choose(&state, &logits, None);
            let mut fast = Sampler::new(
                params.clone(), vocabulary(tokens), seed, 0, &[1, 2, 3],
            ).expect("valid parameters");
            let got = fast.sample(&mut logits.clone(), None);
            if expected.margin > 1e-5 {
                prop_assert_eq!(got, expected.id);
            }
        }
    }
}
