//! The chain of steps, word by word and without any shortcut: what the sampler is held against.

use super::params::SamplingParams;
use super::random::uniform;
use super::sampler::SamplerVocabulary;

/// Everything that a choice depends on besides the logits.
pub(super) struct State<'a> {
    pub(super) params: &'a SamplingParams,
    pub(super) vocabulary: &'a SamplerVocabulary,
    pub(super) seed: i64,
    pub(super) choice: u64,
    pub(super) prompt: &'a [u32],
    pub(super) output: &'a [u32],
}

/// A choice, and how near it was to another one.
pub(super) struct Choice {
    pub(super) id: u32,
    /// The least distance of any sum or probability to the threshold it was compared with.
    pub(super) margin: f64,
}

pub(super) fn choose(state: &State<'_>, logits: &[f32], mask: Option<&[u32]>) -> Choice {
    let params = state.params;
    let mut margin = f64::INFINITY;
    let mut left: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    left.truncate(state.vocabulary.tokens);
    for (id, logit) in &mut left {
        for &(biased, bias) in &params.logit_bias {
            if biased == *id {
                *logit += bias;
            }
        }
    }
    left.retain(|(id, _)| {
        let word = |mask: &[u32]| mask.get(*id as usize / 32).copied().unwrap_or(0);
        let masked = mask.is_some_and(|mask| word(mask) & (1 << (id % 32)) == 0);
        let end = state.vocabulary.ends.contains(id) || *id == state.vocabulary.eos;
        let early = params.ignore_eos || state.output.len() < params.min_tokens as usize;
        !(masked || end && early)
    });
    if left.is_empty() {
        return Choice { id: state.vocabulary.eos, margin };
    }
    let text = [state.prompt, state.output].concat();
    let n = usize::try_from(params.repeat_last_n).unwrap_or(usize::MAX);
    let recent = &text[text.len().saturating_sub(n)..];
    for (id, logit) in &mut left {
        if recent.contains(id) {
            let r = params.repeat_penalty;
            *logit = if *logit > 0.0 { *logit / r } else { *logit * r };
        }
        let count = state.output.iter().filter(|other| *other == id).count();
        if count > 0 {
            *logit -= count as f32 * params.frequency_penalty + params.presence_penalty;
        }
    }
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.temperature < 1e-6 || params.top_k == 1 {
        return Choice { id: left[0].0, margin };
    }
    if params.top_k > 0 {
        left.truncate(params.top_k as usize);
    }
    if params.typical_p < 1.0 {
        let p = softmax(&left);
        let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
        let mut order: Vec<(f64, u32, f32, f64)> = left
            .iter()
            .zip(&p)
            .map(|(&(id, logit), &p)| ((-p.ln() - entropy).abs(), id, logit, p))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for pair in order.windows(2) {
            // equal logits have equal distances; others may be equal by rounding only
            if pair[0].2 != pair[1].2 {
                margin = margin.min(pair[1].0 - pair[0].0);
            }
        }
        let p: Vec<f64> = order.iter().map(|entry| entry.3).collect();
        order.truncate(prefix(&p, params.typical_p, &mut margin));
        left = order.into_iter().map(|(_, id, logit, _)| (id, logit)).collect();
        left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    if params.top_p < 1.0 {
        left.truncate(prefix(&softmax(&left), params.top_p, &mut margin));
    }
    if params.min_p > 0.0 {
        let p = softmax(&left);
        let bar = params.min_p * p[0];
        // the most probable one is kept whatever rounding says
        p[1..].iter().for_each(|p| margin = margin.min((p - bar).abs()));
        left.truncate(p.iter().take_while(|p| **p >= bar).count().max(1));
    }
    for (_, logit) in &mut left {
        *logit /= params.temperature;
    }
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let u = uniform(state.seed, state.choice, state.output.len() as u64);
    let mut sum = 0.0;
    for (&(id, _), p) in left.iter().zip(softmax(&left)) {
        sum += p;
        margin = margin.min((sum - u).abs());
        if sum > u {
            return Choice { id, margin };
        }
    }
    Choice { id: left[left.len() - 1].0, margin: 0.0 }
}

fn softmax(left: &[(u32, f32)]) -> Vec<f64> {
    let max = left.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> =
        left.iter().map(|(_, l)| (f64::from(*l) - f64::from(max)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// Length of the shortest prefix that sums up to `target`, at least 1.
fn prefix(p: &[f64], target: f64, margin: &mut f64) -> usize {
    let mut sum = 0.0;
    for (index, p) in p.iter().enumerate() {
        sum += p;
        // the first is kept anyway, and so is the last
        *margin = margin.min((sum - target).abs());
        if sum >= target {
            return index + 1;
        }
    }
    p.len()
}
