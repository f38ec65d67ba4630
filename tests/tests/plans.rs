//! Plans for the shipped machines beside what others measured there: the tables in the docs are the
//! code's.

use std::fmt::Write;

use trefoil_devices_api::Phase;
use trefoil_engine::model::{Lowered, ModelOptions};
use trefoil_engine::quantize::{Target, without_weights};
use trefoil_graph::LowerOptions;
use trefoil_graph::shape::ModelShape;
use trefoil_scheduler::cost::Corrections;
use trefoil_scheduler::planner::{Goal, PlanRequest, Workload, plan};
use trefoil_scheduler::policy::Resolved;
use trefoil_scheduler::profile::{shipped, shipped_names};
use trefoil_scheduler::simulate::{SimulationRequest, simulate};
use trefoil_scheduler::{Plan, Totals};
use trefoil_tests::golden;

const WORKLOAD: Workload = Workload { prompt: 2048, generate: 256 };
/// Tokens of a prompt that are read in one step: what the program takes if nothing is said, and the
/// whole prompt, as runtimes of NPUs read it.
const CHUNKS: [usize; 2] = [512, 2048];
const GOALS: [Goal; 2] = [Goal::Latency, Goal::Energy];

/// Which device others measured as the fastest for a model of this size.
struct Published {
    profile: &'static str,
    phase: Phase,
    /// `None` where what is published does not decide it.
    fastest: Option<&'static str>,
    figures: &'static str,
}

const PUBLISHED: [Published; 10] = [
    Published {
        profile: "desktop-radeon",
        phase: Phase::Prefill,
        fastest: Some("gpu0"),
        figures: "gpu0 4472 tokens/s at 512 (Qwen3-8B Q4_K_M, RX 9070 XT, vulkanforge 2026-06); a \
                  desktop CPU reads tens",
    },
    Published {
        profile: "desktop-radeon",
        phase: Phase::Decode,
        fastest: Some("gpu0"),
        figures: "gpu0 114.9 (same)",
    },
    Published {
        profile: "krackan",
        phase: Phase::Prefill,
        fastest: Some("npu0"),
        figures: "npu0 435 at 2k (Qwen3-8B, FLM 0.9.31, 2026-01); a GPU of half the size 97.8 \
                  (Qwen2.5-7B Q4_K_M on an 840M, 2026-05)",
    },
    Published {
        profile: "krackan",
        phase: Phase::Decode,
        fastest: None,
        figures: "npu0 11.5 at 2k (same); a GPU of half the size 12.9 (the same 7B), which is about 12 \
                  for 8B: too close to tell",
    },
    Published {
        profile: "phoenix",
        phase: Phase::Prefill,
        fastest: Some("gpu0"),
        figures: "gpu0 253.6 at 512, cpu0 49.8 (Llama-3.1-8B Q4_K_M, 8840U, NB 2026-03); no public \
                  runtime has the first XDNA read models of this size",
    },
    Published {
        profile: "phoenix",
        phase: Phase::Decode,
        fastest: Some("gpu0"),
        figures: "gpu0 16.3, cpu0 9.6 (same); the first XDNA generates 8 where the CPU does 130 \
                  (Qwen3-0.6B, X1)",
    },
    Published {
        profile: "strix-halo",
        phase: Phase::Prefill,
        fastest: Some("gpu0"),
        figures: "gpu0 0.34 s, npu0 1.93 s to the first token after 600 (Qwen3-8B, FLM 2026-09)",
    },
    Published {
        profile: "strix-halo",
        phase: Phase::Decode,
        fastest: Some("gpu0"),
        figures: "gpu0 33.4, npu0 10.4 (same)",
    },
    Published {
        profile: "strix-point",
        phase: Phase::Prefill,
        fastest: Some("npu0"),
        figures: "gpu0 322 at 512 (Qwen3-8B Q4_K_M, HX 370, MSF 2026-02); npu0 435 at 2k on an AI 7 350 \
                  (FLM 2026-01), whose NPU is about a tenth faster. At a chunk of 512 gpu0: GPU and NPU \
                  together lose to the GPU there (0.80 to 0.87 times, GX 2026-10)",
    },
    Published {
        profile: "strix-point",
        phase: Phase::Decode,
        fastest: Some("gpu0"),
        figures: "gpu0 13.4 (MSF); npu0 11.5 at 2k on an AI 7 350; AMD's own hybrid reads on the NPU and \
                  generates on the GPU (RAI 1.7)",
    },
];

struct Row {
    profile: &'static str,
    chunk: usize,
    goal: Goal,
    plan: Plan,
    /// Simulated, with chunks that overlap.
    overlapped: Totals,
}

impl Row {
    fn totals(&self) -> Totals {
        self.plan.prediction.as_ref().expect("has a profile").totals
    }

    /// Joules of the whole request.
    fn joules(&self) -> f64 {
        let totals = self.totals();
        totals.prompt_joules + totals.token_joules * WORKLOAD.generate as f64
    }

    /// Devices of a phase with their units' share, the largest first.
    fn devices(&self, phase: Phase) -> Vec<(&str, f64)> {
        let bucket = self.plan.buckets.iter().find(|bucket| bucket.bucket.phase == phase);
        let bucket = bucket.expect("both phases are planned");
        let counts = bucket.units_per_device().into_iter();
        let mut shares: Vec<(&str, f64)> =
            counts.map(|(name, count)| (name, count as f64 / bucket.units.len() as f64)).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        shares
    }

    fn shown(&self, phase: Phase) -> String {
        let devices = self.devices(phase);
        if let [(only, _)] = devices[..] {
            return only.to_owned();
        }
        let shares = devices.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        shares.collect::<Vec<_>>().join(", ")
    }

    /// By how much the best single device costs more under the goal.
    fn gain(&self) -> Option<f64> {
        let prediction = self.plan.prediction.as_ref()?;
        let alone = prediction.alternatives.iter().filter(|other| other.name.ends_with(" alone"));
        let best = alone.filter_map(|other| other.score).min_by(f64::total_cmp)?;
        Some(best / prediction.score - 1.0)
    }
}

fn rows() -> Vec<Row> {
    let shape = ModelShape::find("qwen3-8b").expect("known");
    let file = without_weights(shape, Target::Q4_K_M).expect("address space");
    let lowered = Lowered::new(file, LowerOptions::default()).expect("lowers");
    let corrections = Corrections::default();
    let policy = Resolved::new(&[], None, None).expect("defaults");
    let mut rows = Vec::new();
    for profile_name in shipped_names() {
        let profile = shipped(profile_name).expect("ships");
        for chunk in CHUNKS {
            let options = ModelOptions { chunk, ..ModelOptions::default() };
            let buckets = lowered.buckets(&options);
            for goal in GOALS {
                let model = lowered.model_ref();
                let mut request =
                    PlanRequest::new(model, &lowered.graph, &profile, &corrections, &buckets);
                policy.apply(&mut request).expect("defaults fit every machine");
                request.goal = goal;
                request.workload = WORKLOAD;
                request.context = lowered.context(&options);
                let plan = plan(&request).expect(profile_name).plan;
                let simulated = simulate(&SimulationRequest {
                    plan: &plan,
                    graph: &lowered.graph,
                    profile: &profile,
                    corrections: &corrections,
                    workload: WORKLOAD,
                    kv_element_bytes: 2,
                    pipelined: true,
                });
                let overlapped = simulated.expect("can be simulated").totals;
                rows.push(Row { profile: profile_name, chunk, goal, plan, overlapped });
            }
        }
    }
    rows
}

/// Does the plan run most of a phase on the device that others found fastest?
fn verdict(row: &Row, published: &Published) -> Option<bool> {
    Some(row.devices(published.phase)[0].0 == published.fastest?)
}

fn document(rows: &[Row]) -> String {
    let mut text = String::from(
        "# Plans for known machines\n\nMade by a test (`tests/tests/plans.rs`): Qwen3-8B in Q4_K_M, a \
         prompt of 2048 tokens and 256 generated, on every shipped profile under two objectives, with \
         the policy's other values as they are built in. Prompts are read 512 tokens a step (what the \
         program does if nothing is said) or all at once (`--prefill-chunk 2048`), which matters where \
         there is an NPU: it has its speed only for many rows. The same table for one chunk size, for \
         any model, is\n\n```console\n$ trefoil plan --shape qwen3-8b --prompt 2048 --generate 256 \
         \\\n    --compare strix-point,strix-halo,krackan,phoenix,desktop-radeon,latency,energy\n```\n\n\
         Every plan is proved to be within *gap* of the best that the cost model knows; *gain* is what \
         the best single device would cost more under the objective. How close the model comes to \
         published speeds is in [profiles.md](profiles.md); a gain below a few percent is less than \
         that. *overlapped* is the time to the first token when the plan is simulated and chunks \
         overlap where they can.\n\n",
    );
    let mut line = |line: String| writeln!(text, "{line}").expect("strings take text");
    line(
        "| profile | chunk | objective | prefill | decode | first token, ms | overlapped, ms | tokens/s \
         | J/token | J prompt | gap | gain |"
            .to_owned(),
    );
    line("|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned());
    for row in rows {
        let totals = row.totals();
        let gap = row.plan.prediction.as_ref().map_or(0.0, |prediction| prediction.gap);
        let gain = row.gain().map_or("cannot be".to_owned(), |g| format!("{:.1} %", g * 100.0));
        line(format!(
            "| {} | {} | {} | {} | {} | {:.0} | {:.0} | {:.1} | {:.2} | {:.0} | {:.1} % | {gain} |",
            row.profile,
            row.chunk,
            row.goal.name(),
            row.shown(Phase::Prefill),
            row.shown(Phase::Decode),
            totals.first_token_seconds * 1e3,
            row.overlapped.first_token_seconds * 1e3,
            1.0 / totals.token_seconds,
            totals.token_joules,
            totals.prompt_joules,
            gap * 100.0,
        ));
    }
    line(
        "\n## Beside what others measured\n\nTokens per second of Qwen3-8B or the nearest model that is \
         published for the machine. *agrees*: the plan for latency runs most units of the phase on the \
         device that was measured as the fastest. *open*: what is published does not decide it.\n"
            .to_owned(),
    );
    line("| profile | phase | published | fastest | chunk 512 | chunk 2048 |".to_owned());
    line("|---|---|---|---|---|---|".to_owned());
    for published in &PUBLISHED {
        let cells = CHUNKS.map(|chunk| {
            let row = rows.iter().find(|row| {
                row.profile == published.profile && row.chunk == chunk && row.goal == Goal::Latency
            });
            let row = row.expect("every profile is planned");
            let shown = row.shown(published.phase);
            match verdict(row, published) {
                None => format!("{shown}: open"),
                Some(true) => format!("{shown}: agrees"),
                Some(false) => format!("{shown}: differs"),
            }
        });
        line(format!(
            "| {} | {} | {} | {} | {} |",
            published.profile,
            published.phase.name(),
            published.figures,
            published.fastest.unwrap_or("open"),
            cells.join(" | ")
        ));
    }
    line(
        "\nWhere the plan differs from the fastest device at a chunk of 512, the chunk is the reason: an \
         NPU that gets 512 rows at a time attains a fifth to a third of its speed, and the published \
         figures are for whole prompts.\n\n## What energy trades\n\nThe plan for energy against the plan \
         for latency, for the whole request. Powers are those of the profiles, whole machine included; \
         published energy says the same of the extremes: on a Krackan the NPU generates at 1.2 to 2.1 W \
         where the GPU takes 14 to 20 (FLM docs, 2025), and on a Max+ 395 NPU and GPU take the same \
         energy per token above idle, so that with the rest of the machine counted the faster GPU is \
         cheaper (colibri 2026).\n"
            .to_owned(),
    );
    line(
        "| profile | chunk | joules | to the first token | tokens/s | prefill | decode |\n\
         |---|---|---|---|---|---|---|"
            .to_owned(),
    );
    for pair in rows.chunks(2) {
        let [fast, frugal] = pair else { continue };
        let change = |from: f64, to: f64| {
            let percent = (to / from - 1.0) * 100.0;
            if percent.abs() < 0.5 { "same".to_owned() } else { format!("{percent:+.0} %") }
        };
        let (a, b) = (fast.totals(), frugal.totals());
        let moved = |phase: Phase| {
            let (from, to) = (fast.shown(phase), frugal.shown(phase));
            if from == to { from } else { format!("{from} -> {to}") }
        };
        line(format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            fast.profile,
            fast.chunk,
            change(fast.joules(), frugal.joules()),
            change(a.first_token_seconds, b.first_token_seconds),
            change(1.0 / a.token_seconds, 1.0 / b.token_seconds),
            moved(Phase::Prefill),
            moved(Phase::Decode),
        ));
    }
    text
}

#[test]
fn the_tables_in_the_docs_are_up_to_date_and_plans_agree_with_what_was_measured() {
    let rows = rows();
    let path = golden::data().join("../../docs/plans.md");
    let text = document(&rows);
    if std::env::var_os("TREFOIL_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "run with TREFOIL_UPDATE_DOCS=1 to write docs/plans.md");
    for pair in rows.chunks(2) {
        let [fast, frugal] = pair else { panic!("two goals each") };
        assert!(frugal.joules() <= fast.joules() * 1.01, "{}", fast.profile);
        let seconds = |row: &Row| {
            let totals = row.totals();
            totals.first_token_seconds + totals.token_seconds * WORKLOAD.generate as f64
        };
        assert!(seconds(fast) <= seconds(frugal) * 1.01, "{}", fast.profile);
    }
    // With whole prompts, as the figures were measured, no plan for latency contradicts them.
    for published in &PUBLISHED {
        let same = |row: &&Row| row.profile == published.profile && row.goal == Goal::Latency;
        let row = rows.iter().filter(same).find(|row| row.chunk == WORKLOAD.prompt as usize);
        let agrees = verdict(row.expect("planned"), published);
        assert_ne!(agrees, Some(false), "{} {}", published.profile, published.phase.name());
    }
}
