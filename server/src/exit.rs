//! How the program ends: documented exit codes and readable errors.

use std::process::ExitCode;

use trefoil_engine::bench::BenchError;
use trefoil_engine::calibrate::{CalibrateError, CheckError, StoreError};
use trefoil_engine::evaluate::EvaluateError;
use trefoil_engine::model::ModelError;
use trefoil_engine::runner::RunError;
use trefoil_engine::synthetic::SyntheticError;
use trefoil_scheduler::planner::PlannerError;

/// Why a command failed, by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Anything else.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// The model is missing or broken.
    Model = 3,
    /// No device, or the model does not fit.
    Device = 4,
    /// The server could not do its work.
    Network = 5,
    /// A check that the user asked for.
    Check = 6,
}

/// A command's failure: what happened, and the status to leave with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) error: Box<dyn std::error::Error + Send + Sync>,
}

pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    pub(crate) fn new(
        status: Status,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { status, error: error.into() }
    }

    /// Did whoever reads the output stop reading? No failure of this program, and not worth a word.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        let error = self.error.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The message with all its causes, each once.
    pub(crate) fn message(&self) -> String {
        let mut text = self.error.to_string();
        let mut source = self.error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }

    /// Name of the status in JSON errors.
    fn code(&self) -> &'static str {
        match self.status {
            Status::Failed => "failed",
            Status::Usage => "usage",
            Status::Model => "model",
            Status::Device => "device",
            Status::Network => "network",
            Status::Check => "check",
        }
    }

    /// Prints the failure to stderr, as a block for people or as the API's error object.
    pub(crate) fn print(&self, json: bool) -> ExitCode {
        if json {
            let body = serde_json::json!({"error": {
                "message": self.message(), "type": "cli_error", "param": null, "code": self.code(),
            }});
            eprintln!("{body}");
        } else {
            eprintln!("{:?}", miette::miette!("{}", self.message()));
        }
        ExitCode::from(self.status as u8)
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        let status = match &error {
            ModelError::Place(_)
            | ModelError::Plan(_)
            | ModelError::Costs(_)
            | ModelError::Policy(_) => Status::Usage,
            ModelError::Planner(error) => match **error {
                PlannerError::Partition(_) => Status::Device,
                _ => Status::Usage,
            },
            ModelError::Device(_) | ModelError::Execute(_) | ModelError::Unusable { .. } => {
                Status::Device
            }
            _ => Status::Model,
        };
        Self::new(status, error)
    }
}

macro_rules! failed {
    ($($error:ty => $status:ident),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(Status::$status, error)
            }
        })*
    };
}

impl From<CalibrateError> for Failure {
    fn from(error: CalibrateError) -> Self {
        let status = match &error {
            CalibrateError::NoDevice | CalibrateError::Run(_) => Status::Device,
            CalibrateError::CostTable { .. } => Status::Usage,
            _ => Status::Failed,
        };
        Self::new(status, error)
    }
}

impl From<CheckError> for Failure {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Calibrate(error) => error.into(),
            CheckError::Model(error) => error.into(),
            error => Self::new(Status::Failed, error),
        }
    }
}

failed! {
    std::io::Error => Failed,
    StoreError => Failed,
    serde_json::Error => Failed,
    crate::config::ConfigError => Usage,
    trefoil_scheduler::policy::PolicyError => Usage,
    trefoil_engine::text::TokenizerError => Model,
    trefoil_engine::text::TemplateError => Model,
}

impl From<trefoil_engine::loaded::LoadError> for Failure {
    fn from(error: trefoil_engine::loaded::LoadError) -> Self {
        use trefoil_engine::loaded::LoadError;
        match error {
            LoadError::Model(error) => error.into(),
            error => Self::new(Status::Model, error),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let status = match &error {
            RunError::NoSuchToken { .. }
            | RunError::ContextFull { .. }
            | RunError::TooLongForEncoder { .. }
            | RunError::EmptyPrompt => Status::Usage,
            RunError::NoPages { .. } | RunError::Execute(_) => Status::Device,
            _ => Status::Failed,
        };
        Self::new(status, error)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Model(error) => error.into(),
            BenchError::Run(error) => error.into(),
            error => Self::new(Status::Usage, error),
        }
    }
}

impl From<SyntheticError> for Failure {
    fn from(error: SyntheticError) -> Self {
        let status = match &error {
            SyntheticError::Space { .. } | SyntheticError::Write { .. } => Status::Failed,
            _ => Status::Usage,
        };
        Self::new(status, error)
    }
}

impl From<EvaluateError> for Failure {
    fn from(error: EvaluateError) -> Self {
        match error {
            EvaluateError::Run(error) => error.into(),
            error => Self::new(Status::Usage, error),
        }
    }
}
