//! Fields that requests for generated text have in common (API.md sections 3 and 4).

use super::error::ApiError;
use super::fields::Fields;
use crate::sampling::Overrides;

const MOST_STOPS: usize = 16;
const MOST_STOP_BYTES: usize = 256;
const MOST_BIASES: usize = 1024;

/// The name of the model that is asked.
pub(crate) fn model(fields: &mut Fields) -> Result<String, ApiError> {
    let model = fields.string("model")?.ok_or_else(|| fields.missing("model"))?;
    if model.is_empty() || model.len() > 256 {
        let got = format!("{} bytes", model.len());
        return Err(fields.invalid("model", "1 to 256 bytes", &got));
    }
    Ok(model)
}

/// Takes fields that change nothing, refuses those that would change the answer, and returns the names
/// of those that are not known (`strict`: refuses them too).
pub(crate) fn rest(
    fields: &mut Fields,
    no_effect: &[&'static str],
    refused: &[&'static str],
    strict: bool,
) -> Result<Vec<String>, ApiError> {
    for field in no_effect {
        fields.take(field);
    }
    for field in refused {
        if fields.take(field).is_some() {
            return Err(ApiError::unsupported(field));
        }
    }
    let ignored = fields.unknown();
    if strict && let Some(first) = ignored.first() {
        let message = format!("The field '{first}' is not known; leave it out.");
        return Err(ApiError::field("unknown_parameter", first, message));
    }
    Ok(ignored)
}

/// Most tokens of a reply, by either of its names.
pub(crate) fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let new = fields.integer("max_completion_tokens", 1..=i64::MAX)?;
    let old = fields.integer("max_tokens", 1..=i64::MAX)?;
    match (new, old) {
        (Some(a), Some(b)) if a != b => Err(fields.invalid(
            "max_tokens",
            &format!("the same as max_completion_tokens, {a}"),
            &b.to_string(),
        )),
        (a, b) => Ok(a.or(b).map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
    }
}

/// Sampling, where the request differs from what the model recommends.
pub(crate) fn overrides(fields: &mut Fields) -> Result<Overrides, ApiError> {
    let penalty = fields.number("repeat_penalty", f64::MIN_POSITIVE..=10.0)?;
    let penalty_alias = fields.number("repetition_penalty", f64::MIN_POSITIVE..=10.0)?;
    Ok(Overrides {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?,
        min_p: fields.number("min_p", 0.0..=1.0)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?,
        repeat_penalty: penalty.or(penalty_alias),
        repeat_last_n: fields.integer("repeat_last_n", -1..=i64::from(u32::MAX))?,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        logit_bias: logit_bias(fields)?,
        seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
        min_tokens: fields.integer("min_tokens", 0..=i64::MAX)?.map(|n| n as usize),
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
    })
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let biases = biases.rest();
    if biases.len() > MOST_BIASES {
        let got = biases.len().to_string();
        return Err(fields.invalid("logit_bias", &format!("at most {MOST_BIASES} entries"), &got));
    }
    let expected = "token ids with numbers from -100 to 100";
    let pairs = biases.into_iter().map(|(id, bias)| {
        let pair = id.parse::<u32>().ok().zip(bias.as_f64());
        match pair {
            Some((id, bias)) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
            _ => Err(fields.invalid("logit_bias", expected, &format!("{id:?}: {bias}"))),
        }
    });
    pairs.collect()
}

/// Texts that end a reply.
pub(crate) fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = fields.strings("stop")?.unwrap_or_default();
    if stops.len() > MOST_STOPS {
        let got = stops.len().to_string();
        return Err(fields.invalid("stop", &format!("at most {MOST_STOPS} strings"), &got));
    }
    match stops.iter().find(|stop| stop.is_empty() || stop.len() > MOST_STOP_BYTES) {
        Some(stop) => Err(fields.invalid(
            "stop",
            &format!("strings of 1 to {MOST_STOP_BYTES} bytes"),
            &format!("one of {}", stop.len()),
        )),
        None => Ok(stops),
    }
}

/// Is usage wanted at the end of the stream?
pub(crate) fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(fields.invalid("stream_options", "'stream': true beside it", "none"));
    }
    options.take("include_obfuscation");
    Ok(options.bool("include_usage")?.unwrap_or(false))
}
