//! `trefoil plan --what-if`: what a change of the machine changes.

use std::io::{Write, stdout};

use serde_json::json;
use trefoil_scheduler::{Plan, Totals};

use super::predicted;
use crate::cli::PlanArgs;
use crate::exit::Outcome;

pub(super) fn show(before: &Plan, after: &Plan, args: &PlanArgs) -> Outcome {
    let changes: Vec<String> = args.what_if.iter().map(ToString::to_string).collect();
    if args.json {
        let document = json!({ "what_if": changes, "before": before, "after": after });
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    write!(stdout(), "{}", render(before, after, &changes))?;
    Ok(())
}

fn render(before: &Plan, after: &Plan, changes: &[String]) -> String {
    let name = before.model.name.as_deref().unwrap_or("unnamed");
    let profile = before.profile.as_deref().unwrap_or_default();
    let mut lines =
        vec![format!("{name} on {profile}, policy: {}", before.policy), "what if".to_owned()];
    lines.extend(changes.iter().map(|change| format!("  {change}")));
    for (old, new) in before.buckets.iter().zip(&after.buckets) {
        let (phase, most) = (old.bucket.phase.name(), old.bucket.max_tokens);
        lines.push(format!("\n{phase}, up to {most} tokens a step"));
        let moved = predicted::moved(old, new);
        if moved.is_empty() {
            lines.push("  placed as before".to_owned());
        }
        lines.extend(moved.iter().map(|line| format!("  {line}")));
    }
    let (Some(old), Some(new)) = (&before.prediction, &after.prediction) else {
        return lines.join("\n") + "\n";
    };
    lines.push(format!("\n{:<26}{:>12}{:>12}{:>10}", "", "before", "after", "change"));
    type Figure = (&'static str, fn(&Totals) -> f64);
    let figures: [Figure; 4] = [
        ("ms to the first token", |totals| totals.first_token_seconds * 1e3),
        ("tokens/s", |totals| 1.0 / totals.token_seconds),
        ("J/token", |totals| totals.token_joules),
        ("J prompt", |totals| totals.prompt_joules),
    ];
    for (name, of) in figures {
        let (old, new) = (of(&old.totals), of(&new.totals));
        let change = (new / old - 1.0) * 100.0;
        // No "-0.0".
        let change = if change.abs() < 0.05 { 0.0 } else { change };
        lines.push(format!("{name:<26}{old:>12.2}{new:>12.2}{change:>+8.1} %"));
    }
    lines.push(format!("why now: {}", after.reasons.join("; ")));
    lines.join("\n") + "\n"
}
