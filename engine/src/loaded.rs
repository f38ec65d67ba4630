//! A model as users have it: placed, compiled, with its tokenizer and chat template.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use trefoil_graph::ModelFile;
use trefoil_scheduler::Plan;

use crate::backends::Backends;
use crate::calibrate::{Costs, Predictor};
use crate::grammar::Grammars;
use crate::model::{Lowered, ModelError, ModelOptions, open_file};
use crate::runner::Runner;
use crate::text::of_model::{self, ModelTemplateError};
use crate::text::sampling::{SamplerVocabulary, SamplingSettings};
use crate::text::template::{CivilTime, Conversation};
use crate::text::tools::{self, CallStyle};
use crate::text::{ChatTemplate, EncodeOptions, TemplateError, Tokenizer, TokenizerError};

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// File, graph, plan, memory.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Chat template that the user gave.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// Chat template of the model.
    #[error("chat template: {0}")]
    ModelTemplate(#[from] ModelTemplateError),
    /// A JSON file beside the model.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// What turns messages into tokens and tokens into text. Shared by all requests.
#[derive(Debug)]
pub struct TextSide {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template: the user's, the model's own, or the one that its vocabulary tells.
    pub template: ChatTemplate,
    /// Sampling that the model recommends.
    pub sampling: SamplingSettings,
    /// What compiles grammars for its tokens.
    pub grammars: Grammars,
    /// How the model calls tools.
    pub calls: CallStyle,
    vocabulary: SamplerVocabulary,
}

impl TextSide {
    /// The tokenizer and template of an opened file; `template` is the source that the user gave.
    pub fn new(file: &ModelFile, template: Option<&str>) -> Result<Self, LoadError> {
        let tokenizer = of_model::tokenizer(file)?;
        let template = match template {
            Some(source) => {
                let name = |id: Option<u32>| id.map_or("", |id| tokenizer.token_text(id));
                ChatTemplate::new(source, name(tokenizer.bos()), name(tokenizer.eos()))?
            }
            None => of_model::chat_template(file, &tokenizer)?.0,
        };
        let sampling = match &file.folder {
            Some(folder) => read_json(&folder.join("generation_config.json"))?
                .map(|config| SamplingSettings::from_generation_config(&config))
                .unwrap_or_default(),
            None => SamplingSettings::from_metadata(&file.metadata)
                .map_err(|error| ModelError::Lower(error.into()))?,
        };
        let ends: Arc<[u32]> = tokenizer.end_tokens().into();
        let eos = tokenizer.eos().or(ends.first().copied()).unwrap_or(0);
        let vocabulary = SamplerVocabulary { tokens: tokenizer.vocab_size(), eos, ends };
        let grammars = Grammars::new(tokenizer.clone());
        let calls = CallStyle::of(&template, &tokenizer);
        Ok(Self { tokenizer, template, sampling, grammars, calls, vocabulary })
    }

    /// What a sampler needs to know of the vocabulary.
    pub fn sampler_vocabulary(&self) -> SamplerVocabulary {
        self.vocabulary.clone()
    }

    /// The text of a conversation, ready for the assistant's turn.
    pub fn render(
        &self,
        messages: &Json,
        variables: Option<&serde_json::Map<String, Json>>,
    ) -> Result<String, TemplateError> {
        self.render_with_tools(messages, None, variables)
    }

    /// The same with tools that the model may call, in the layout of OpenAI's chat API.
    pub fn render_with_tools(
        &self,
        messages: &Json,
        tools: Option<&Json>,
        variables: Option<&serde_json::Map<String, Json>>,
    ) -> Result<String, TemplateError> {
        let messages = &tools::prepare(&self.calls, messages, tools);
        self.template.render(&Conversation {
            messages,
            tools,
            add_generation_prompt: true,
            variables,
            now: CivilTime::now(),
        })
    }

    /// Token ids of a rendered conversation. A template writes the first token itself, so that none
    /// is put before it unless it did not.
    pub fn encode_rendered(&self, text: &str) -> Vec<u32> {
        let options = EncodeOptions { add_special: false, parse_special: true };
        let mut ids = self.tokenizer.encode(text, options);
        if self.tokenizer.add_bos()
            && let Some(bos) = self.tokenizer.bos()
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    /// Token ids of a text as it is, with what the model puts around every text.
    pub fn encode_raw(&self, text: &str) -> Vec<u32> {
        let options = EncodeOptions { add_special: true, parse_special: true };
        self.tokenizer.encode(text, options)
    }
}

fn read_json(path: &Path) -> Result<Option<Json>, LoadError> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
    let file = path.display().to_string();
    serde_json::from_slice(&bytes).map(Some).map_err(|source| LoadError::Json { file, source })
}

/// A model ready to generate.
#[derive(Debug)]
pub struct Loaded {
    /// File, hyper-parameters, graph.
    pub lowered: Lowered,
    /// Tokenizer and template.
    pub text: Arc<TextSide>,
    /// Where everything runs.
    pub plan: Plan,
    /// What its devices' work costs, where that is known.
    pub costs: Option<Costs>,
    /// The plan at work.
    pub runner: Runner,
    /// Time that making the plan took, measurements included.
    pub planning: Duration,
    /// Time that loading took.
    pub took: Duration,
}

impl Loaded {
    /// Loads the model called `name` (a path, or the built-in one).
    pub fn open(
        name: &str,
        backends: &Backends,
        options: &ModelOptions,
        template: Option<&str>,
    ) -> Result<Self, LoadError> {
        let start = Instant::now();
        let lowered = Lowered::new(open_file(name)?, options.lower)?;
        let text = Arc::new(TextSide::new(&lowered.file, template)?);
        let begin = Instant::now();
        let (plan, costs) = lowered.plan_with_costs(backends, options)?;
        let planning = begin.elapsed();
        let runner = lowered.runner(backends, &plan, options)?;
        Ok(Self { lowered, text, plan, costs, runner, planning, took: start.elapsed() })
    }

    /// What predicts recorded steps, where costs are known.
    pub fn predictor(&self) -> Option<Predictor<'_>> {
        let half = self.runner.executor.kv.layout().half;
        let kv_element_bytes = if half { 2.0 } else { 4.0 };
        let costs = self.costs.as_ref()?;
        Some(Predictor { costs, graph: &self.lowered.graph, kv_element_bytes })
    }

    /// Devices that run a phase, with the number of units on each.
    pub fn devices(&self, phase: trefoil_devices_api::Phase) -> Vec<(String, usize)> {
        let bucket = self.plan.buckets.iter().find(|bucket| bucket.bucket.phase == phase);
        let counts = bucket.map(trefoil_scheduler::BucketPlan::units_per_device);
        counts.into_iter().flatten().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}
