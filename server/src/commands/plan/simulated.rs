//! `trefoil plan --simulate`: the plan on simulated devices, beside what was predicted.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write, stdout};
use std::path::Path;

use serde_json::{Value, json};
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_scheduler::cost::Corrections;
use trefoil_scheduler::planner::Workload;
use trefoil_scheduler::profile::Profile;
use trefoil_scheduler::simulate::{Busy, Simulation, SimulationRequest, simulate};
use trefoil_scheduler::{Plan, Totals};

use super::predicted;
use crate::cli::PlanArgs;
use crate::exit::{Failure, Outcome, Status};

pub(super) fn run(
    lowered: &Lowered,
    profile: &Profile,
    plan: &Plan,
    args: &PlanArgs,
    options: &ModelOptions,
) -> Outcome {
    let simulated = |pipelined: bool| {
        let request = SimulationRequest {
            plan,
            graph: &lowered.graph,
            profile,
            corrections: &Corrections::default(),
            workload: Workload { prompt: args.prompt as u64, generate: args.generate as u64 },
            kv_element_bytes: options.kv_type.bytes(),
            pipelined,
        };
        simulate(&request).map_err(|error| Failure::new(Status::Usage, error))
    };
    let (apart, together) = (simulated(false)?, simulated(true)?);
    if let Some(path) = &args.trace {
        write_trace(path, &together)?;
    }
    if args.json {
        let document = json!({
            "plan": plan,
            "predicted": plan.prediction.as_ref().map(|prediction| prediction.totals),
            "in_turn": as_json(&apart),
            "overlapped": as_json(&together),
        });
        writeln!(stdout(), "{}", serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    write!(stdout(), "{}{}", super::render(plan), render(plan, &apart, &together, args))?;
    Ok(())
}

fn write_trace(path: &Path, simulation: &Simulation) -> Outcome {
    let fail = |error: std::io::Error| {
        Failure::new(Status::Failed, format!("{}: cannot be written: {error}", path.display()))
    };
    let file = File::create(path).map_err(fail)?;
    simulation.trace("simulated").write(BufWriter::new(file)).map_err(fail)
}

fn as_json(simulation: &Simulation) -> Value {
    let busy = |all: &[Busy]| -> Vec<Value> {
        let used = all.iter().filter(|busy| busy.count > 0);
        let row = |busy: &Busy| {
            json!({
                "name": busy.name, "prefill_seconds": busy.seconds[0],
                "decode_seconds": busy.seconds[1], "count": busy.count,
                "slowed_seconds": busy.slowed,
            })
        };
        used.map(row).collect()
    };
    json!({
        "totals": simulation.totals,
        "prefill_seconds": simulation.seconds[0],
        "decode_seconds": simulation.seconds[1],
        "chunks": simulation.chunks,
        "devices": busy(&simulation.devices),
        "links": busy(&simulation.links),
    })
}

fn render(plan: &Plan, apart: &Simulation, together: &Simulation, args: &PlanArgs) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        writeln!(text, "{}", line.trim_end()).expect("strings take text");
    };
    let chunks = if together.chunks == 1 { "chunk" } else { "chunks" };
    line(format!(
        "\nsimulated: a prompt of {} tokens in {} {chunks}, {} generated",
        args.prompt, together.chunks, args.generate
    ));
    let mut totals = |name: &str, of: &Totals| {
        line(format!("  {name:<18}{}", predicted::totals(of)));
    };
    if let Some(prediction) = &plan.prediction {
        totals("predicted", &prediction.totals);
    }
    totals("chunks in turn", &apart.totals);
    totals("chunks overlapped", &together.totals);
    line(format!(
        "\nwhat each did, chunks overlapped: prefill {:.0} ms, decode {:.0} ms",
        together.seconds[0] * 1e3,
        together.seconds[1] * 1e3
    ));
    for busy in together.devices.iter().chain(&together.links).filter(|busy| busy.count > 0) {
        let phases = ["prefill", "decode"].iter().zip(busy.seconds).zip(together.seconds);
        let phases = phases.map(|((phase, seconds), all)| {
            let share = if all > 0.0 { seconds / all * 100.0 } else { 0.0 };
            let (busy, waiting) = (seconds * 1e3, (all - seconds).max(0.0) * 1e3);
            format!("{phase} busy {busy:.0} ms ({share:.0} %), waiting {waiting:.0} ms")
        });
        let slowed = if busy.slowed > 1e-6 {
            format!("; {:.0} ms of it by others' work", busy.slowed * 1e3)
        } else {
            String::new()
        };
        let phases = phases.collect::<Vec<_>>().join("; ");
        line(format!("  {:<14}{phases}{slowed}", busy.name));
    }
    text
}
