//! `trefoil plan --compare`: one table over profiles and policies.

use std::io::{Write, stdout};

use serde_json::{Value, json};
use trefoil_devices_api::Phase;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_scheduler::profile::{Profile, shipped_names};
use trefoil_scheduler::{Plan, nearest};

use super::predicted;
use crate::cli::PlanArgs;
use crate::config::{Config, OBJECTIVES};
use crate::exit::{Failure, Outcome, Status};

/// One plan of the table, or why there is none.
struct Row {
    profile: String,
    policy: String,
    outcome: Result<Plan, Failure>,
}

pub(super) fn run(
    lowered: &Lowered,
    args: &PlanArgs,
    options: &ModelOptions,
    config: &Config,
) -> Outcome {
    let (profiles, policies) = names(args, config)?;
    let mut rows = Vec::new();
    for profile in &profiles {
        for name in &policies {
            let policy = config.policy(name.as_deref())?;
            let outcome = predicted::plan(lowered, profile, args, options, &policy);
            rows.push(Row {
                profile: profile.name.clone(),
                policy: policy.name,
                outcome: outcome.map(|planned| planned.plan),
            });
        }
    }
    if args.json {
        let all: Vec<Value> = rows.iter().map(Row::to_json).collect();
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&all)?)?;
    } else {
        write!(stdout(), "{}", table(&rows))?;
    }
    // A table without a plan is no answer.
    if rows.iter().all(|row| row.outcome.is_err())
        && let Some(Row { outcome: Err(failure), .. }) = rows.pop()
    {
        return Err(failure);
    }
    Ok(())
}

/// The profiles and the policies of the list; those of other flags where it has none.
fn names(args: &PlanArgs, config: &Config) -> Result<(Vec<Profile>, Vec<Option<String>>), Failure> {
    let (mut profiles, mut policies) = (Vec::new(), Vec::new());
    for name in &args.compare {
        if config.is_policy(name) {
            policies.push(Some(name.clone()));
        } else if name.ends_with(".toml") || shipped_names().any(|known| known == name) {
            profiles.push(predicted::profile(name)?);
        } else {
            let own = config.policy_names();
            let mut known: Vec<&str> = own.iter().map(String::as_str).collect();
            for name in shipped_names().chain(["on_battery"]).chain(OBJECTIVES) {
                known.push(name);
            }
            let near = nearest(name, known.iter().copied());
            let hint = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            let error = format!(
                "--compare: {name:?} is no profile and no policy; known are: {}, and .toml files of \
                 profiles{hint}",
                known.join(", ")
            );
            return Err(Failure::new(Status::Usage, error));
        }
    }
    if profiles.is_empty() {
        let Some(name) = &args.profile else {
            let known: Vec<&str> = shipped_names().collect();
            let error = format!(
                "--compare: expected a profile among the names, or --profile; known are: {}",
                known.join(", ")
            );
            return Err(Failure::new(Status::Usage, error));
        };
        profiles.push(predicted::profile(name)?);
    }
    if policies.is_empty() {
        policies.push(None);
    }
    Ok((profiles, policies))
}

/// Devices of a phase with their shares of the units: `gpu0`, `npu0 75 % gpu0 25 %`.
fn devices(plan: &Plan, phase: Phase) -> String {
    let Some(bucket) = plan.buckets.iter().find(|bucket| bucket.bucket.phase == phase) else {
        return String::new();
    };
    let mut counts: Vec<(&str, usize)> = bucket.units_per_device().into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    if let [(only, _)] = counts[..] {
        return only.to_owned();
    }
    let share = |count: usize| (count as f64 / bucket.units.len() as f64 * 100.0).round().max(1.0);
    let shares = counts.iter().map(|(name, count)| format!("{name} {} %", share(*count)));
    shares.collect::<Vec<_>>().join(" ")
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.profile.clone(), self.policy.clone()];
        match &self.outcome {
            Err(failure) => cells.push(failure.message()),
            Ok(plan) => {
                cells.extend([Phase::Prefill, Phase::Decode].map(|phase| devices(plan, phase)));
                if let Some(prediction) = &plan.prediction {
                    let totals = &prediction.totals;
                    cells.extend([
                        format!("{:.0} ms", totals.first_token_seconds * 1e3),
                        format!("{:.1}", 1.0 / totals.token_seconds),
                        format!("{:.2}", totals.token_joules),
                        format!("{:.2} %", prediction.gap * 100.0),
                    ]);
                }
            }
        }
        cells
    }

    fn to_json(&self) -> Value {
        let mut row = json!({"profile": self.profile, "policy": self.policy});
        match &self.outcome {
            Err(failure) => row["error"] = json!(failure.message()),
            Ok(plan) => {
                row["prefill"] = json!(devices(plan, Phase::Prefill));
                row["decode"] = json!(devices(plan, Phase::Decode));
                if let Some(prediction) = &plan.prediction {
                    row["totals"] = json!(prediction.totals);
                    row["gap"] = json!(prediction.gap);
                }
            }
        }
        row
    }
}

/// Columns as wide as their cells; what is no table row (an error) ends its line.
fn table(rows: &[Row]) -> String {
    let head =
        ["profile", "policy", "prefill", "decode", "first token", "tokens/s", "J/token", "gap"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(Row::cells));
    let full = |line: &&Vec<String>| line.len() == head.len();
    let width = |column: usize| {
        let cells = lines.iter().filter(full).map(|line| line[column].chars().count());
        let names = lines.iter().filter(|_| column < 2).map(|line| line[column].chars().count());
        cells.chain(names).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let width = if line.len() == head.len() || column < 2 { *width } else { 0 };
            // Figures to the right.
            if column < 4 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
