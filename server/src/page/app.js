// The page: sets the parts up, and looks at the server again and again while it is seen.

import { get, post } from "./api.js";
import { chat } from "./chat.js";
import { $, el, seconds } from "./dom.js";
import { show } from "./live.js";
import { draw, totals, why } from "./plan.js";

const EVERY = 1000;
const PLAN_EVERY = 3;

let looks = 0;
const model = () => $("model").value || "default";
const ofModel = (path) => `${path}?model=${encodeURIComponent(model())}`;

function figures(entries) {
  return el("dl", { class: "tiles" }, ...entries.map(([name, value]) => el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, el("strong", {}, value)))));
}

async function showPlan() {
  const plan = await get(ofModel("/v1/plan"));
  const predicted = totals(plan.prediction).map(([name, value]) => `${name.toLowerCase()} ${value}`);
  $("plan-note").textContent = [`version ${plan.version}`, plan.objective, ...(predicted.length ? [`predicted ${predicted.join(", ")}`] : [])].join(" · ");
  draw($("plan"), plan);
  $("why").replaceChildren(...why(plan));
}

async function showPolicies() {
  const { name, known, profiles } = await get(ofModel("/v1/policy"));
  $("policy").replaceChildren(...known.map((one) => el("option", { value: one, selected: one === name }, one)));
  $("profile").replaceChildren(el("option", { value: "" }, "this machine"), ...profiles.map((one) => el("option", { value: one }, one)));
}

async function showModels() {
  const { data } = await get("/v1/models");
  const { model_loaded: usual } = await get("/v1/health");
  const chosen = model();
  $("model").replaceChildren(...data.map(({ id }) => el("option", { value: id, selected: id === (chosen === "default" ? usual : chosen) }, id)));
}

/** One look at the server. */
async function look() {
  const [stats, devices] = await Promise.all([get("/v1/stats"), get("/v1/devices")]);
  show(stats, devices, model(), performance.now());
  if (looks % PLAN_EVERY === 0) await showPlan();
  looks += 1;
  $("status").textContent = "connected";
  $("status").className = "status good";
}

async function watch() {
  try {
    if (!document.hidden) {
      if ($("model").options.length === 0) {
        await showModels();
        await showPolicies();
      }
      await look();
    }
  } catch (error) {
    $("status").textContent = error.status ? error.message : "no answer";
    $("status").className = "status bad";
  }
  setTimeout(watch, EVERY);
}

async function ask(event) {
  event.preventDefault();
  const box = $("answer");
  const body = {
    model: model(),
    policy: $("policy").value,
    phase_shape: { prompt_tokens: Number($("prompt-tokens").value), generated_tokens: Number($("reply-tokens").value) },
  };
  if ($("profile").value) body.profile = $("profile").value;
  try {
    const plan = await post("/v1/plan", body);
    const drawn = el("div", { class: "drawn" });
    draw(drawn, plan);
    box.replaceChildren(
      figures([...totals(plan.prediction), ["Planned in", seconds(plan.planning_seconds)]]),
      drawn,
      el("details", { class: "why" }, el("summary", {}, "Why this plan, and what was rejected"), ...why(plan)),
    );
  } catch (error) {
    box.replaceChildren(el("p", { class: "error" }, error.message));
  }
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}

function view(name) {
  document.querySelector("main").dataset.view = name;
  $("view-chat").setAttribute("aria-pressed", String(name === "chat"));
  $("view-machine").setAttribute("aria-pressed", String(name === "machine"));
}

theme(document.documentElement.dataset.theme === "dark");
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme !== "dark";
  localStorage.setItem("trefoil-theme", dark ? "dark" : "light");
  theme(dark);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
  if (!localStorage.getItem("trefoil-theme")) theme(event.matches);
});
$("view-chat").addEventListener("click", () => view("chat"));
$("view-machine").addEventListener("click", () => view("machine"));
$("what-if").addEventListener("submit", ask);
$("model").addEventListener("change", () => {
  looks = 0;
  showPolicies().catch(() => {});
});
chat(model, () => {
  looks = 0; // the plan's measured times changed
});
watch();
