//! Sampling as a request or a command line sets it, over what the model recommends.

use trefoil_engine::text::sampling::{SamplingParams, SamplingSettings};

/// Fields that were set; what is absent comes from the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    pub(crate) temperature: Option<f64>,
    pub(crate) top_p: Option<f64>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f64>,
    pub(crate) typical_p: Option<f64>,
    pub(crate) repeat_penalty: Option<f64>,
    pub(crate) repeat_last_n: Option<i64>,
    pub(crate) frequency_penalty: Option<f64>,
    pub(crate) presence_penalty: Option<f64>,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) seed: Option<i64>,
    pub(crate) min_tokens: Option<usize>,
    pub(crate) ignore_eos: bool,
}

impl Overrides {
    /// Parameters with these fields, then `model`'s, then the built-in ones; not yet checked.
    pub(crate) fn params(&self, model: SamplingSettings) -> SamplingParams {
        let whole = |n: i64| i32::try_from(n).unwrap_or(i32::MAX);
        let mut settings = SamplingSettings::default();
        settings.temperature = self.temperature.map(|t| t as f32);
        settings.top_k = self.top_k.map(whole);
        settings.top_p = self.top_p;
        settings.min_p = self.min_p;
        settings.typical_p = self.typical_p;
        settings.repeat_penalty = self.repeat_penalty.map(|p| p as f32);
        settings.repeat_last_n = self.repeat_last_n.map(whole);
        let mut params = settings.over(model).params();
        params.frequency_penalty = self.frequency_penalty.unwrap_or(0.0) as f32;
        params.presence_penalty = self.presence_penalty.unwrap_or(0.0) as f32;
        params.logit_bias.clone_from(&self.logit_bias);
        params.min_tokens = u32::try_from(self.min_tokens.unwrap_or(0)).unwrap_or(u32::MAX);
        params.ignore_eos = self.ignore_eos;
        params
    }
}
