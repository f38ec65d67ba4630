// Draws plans: a cell per unit and phase, in the colour of its device, and its segments with times.

import { bytes, chip, el, kind, number, percent, seconds } from "./dom.js";

const ROWS = [
  ["attn_in", "q, k, v"],
  ["attn", "attention"],
  ["attn_out", "output"],
  ["ffn", "feed-forward"],
  ["moe", "experts"],
];
const NAMES = { embed: "token look-up", head: "head", attn_in: "q, k, v projections", attn: "attention and KV cache", attn_out: "attention output", ffn: "feed-forward", moe: "experts" };
const MOST_SEGMENTS = 6;
const PHASES = { prefill: "Reading the prompt", decode: "Making tokens" };

function layers(segment) {
  if (!segment.layers) return segment.first;
  const [first, last] = segment.layers;
  return first === last ? `layer ${first}` : `layers ${first}–${last}`;
}

/** What is known of a segment's time, in words. */
function times(segment, most) {
  const last = segment.measured?.last;
  if (!last) {
    return segment.predicted_seconds === null
      ? "no prediction"
      : `predicted ${seconds(segment.predicted_seconds)} for a step of ${most}`;
  }
  const measured = `measured ${seconds(last.seconds)}`;
  if (last.predicted_seconds === null) return measured;
  return `${measured}, predicted ${seconds(last.predicted_seconds)} (${percent(last.error_ratio, true)})`;
}

/** The segment that holds a unit, by its place. */
function segmentOf(phase, index) {
  let at = -1;
  let before = null;
  for (let place = 0; place <= index; place += 1) {
    if (phase.units[place].device !== before) at += 1;
    before = phase.units[place].device;
  }
  return phase.segments[at];
}

function describe(phase, index) {
  const unit = phase.units[index];
  const segment = segmentOf(phase, index);
  const where = unit.layer === null ? NAMES[unit.kind] : `layer ${unit.layer}, ${NAMES[unit.kind]}`;
  const parts = [`${unit.unit}: ${where}`, unit.device];
  if (segment) {
    parts.push(`segment ${segment.segment} (${layers(segment)}, ${bytes(segment.weight_bytes)} of weights)`);
    parts.push(times(segment, phase.max_tokens));
  }
  const split = phase.splits.filter((one) => one.op.startsWith(unit.unit.replace(/\.[a-z_]+$/, ".")) && unit.layer !== null);
  for (const one of split) {
    parts.push(`of this layer, ${one.op} is split: ${one.shares.map((share) => `${share.device} ${share.rows} rows`).join(", ")}`);
  }
  return parts.join(" · ");
}

/** The cells of a phase. `phase()` is the phase as it is now. */
function grid(phase) {
  const units = phase().units;
  const rows = ROWS.filter(([name]) => units.some((unit) => unit.kind === name));
  const count = Math.max(-1, ...units.map((unit) => unit.layer ?? -1)) + 1;
  const detail = el("p", { class: "detail" }, "Point at a part, or use the arrow keys.");
  const cells = [];
  const box = el("div", { class: "cells", role: "group", "aria-label": `${PHASES[phase().phase]}: which device runs each part; arrow keys move` });
  box.style.setProperty("--layers", count);
  for (const [index, [, name]] of rows.entries()) {
    const label = el("span", { class: "label", "aria-hidden": "true" }, name);
    label.style.gridRow = index + 1;
    box.append(label);
  }
  // Numbers of layers, as many as fit.
  const every = Math.ceil(count / 12);
  for (let layer = 0; layer < count; layer += every) {
    const label = el("span", { class: "axis", "aria-hidden": "true" }, layer);
    label.style.gridColumn = layer + 3;
    label.style.gridRow = rows.length + 1;
    box.append(label);
  }
  const show = (index) => {
    detail.textContent = describe(phase(), index);
  };
  units.forEach((unit, index) => {
    const row = rows.findIndex(([name]) => name === unit.kind);
    const column = unit.kind === "embed" ? 0 : unit.layer === null ? count + 1 : unit.layer + 1;
    const cell = el("button", {
      type: "button",
      class: `cell ${kind(unit.device)} ${row < 0 ? "tall" : ""}`,
      tabindex: index === 0 ? 0 : -1,
      "aria-label": `${unit.layer === null ? "" : `layer ${unit.layer}, `}${NAMES[unit.kind]}: ${unit.device}`,
      onfocus: () => show(index),
      onmouseenter: () => show(index),
    });
    cell.style.gridColumn = column + 2;
    cell.style.gridRow = row < 0 ? `1 / span ${Math.max(rows.length, 1)}` : row + 1;
    cells.push({ cell, row: Math.max(row, 0), column });
    box.append(cell);
  });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const at = cells.findIndex(({ cell }) => cell === document.activeElement);
    if (!step || at < 0) return;
    event.preventDefault();
    const { column, row } = cells[at];
    const wanted = [column + step[0], row + step[1]];
    const next =
      cells.find((one) => one.column === wanted[0] && one.row === wanted[1]) ??
      (step[0] !== 0 ? cells.find((one) => one.column === wanted[0]) : undefined);
    if (!next) return;
    cells[at].cell.tabIndex = -1;
    next.cell.tabIndex = 0;
    next.cell.focus();
  });
  return [box, detail];
}

/** A bar as long as its share of the longest; none for what is not known. */
function bar(value, longest, name) {
  if (value === null || value === undefined) return null;
  const bar = el("span", { class: `bar-of ${name}` });
  bar.style.setProperty("--share", longest > 0 ? value / longest : 0);
  return bar;
}

function segments(phase) {
  const of = (segment) => segment.measured?.last ?? { seconds: null, predicted_seconds: segment.predicted_seconds };
  const longest = Math.max(...phase.segments.map((segment) => Math.max(of(segment).seconds ?? 0, of(segment).predicted_seconds ?? 0)));
  const rows = phase.segments.slice(0, MOST_SEGMENTS).map((segment) => {
    const { seconds: measured, predicted_seconds: predicted } = of(segment);
    return el(
      "li",
      {},
      chip(segment.device),
      el("span", { class: "what" }, `${layers(segment)} · ${segment.ops.join(", ")}`),
      el("span", { class: "bars", "aria-hidden": "true" }, bar(measured, longest, kind(segment.device)), bar(predicted, longest, "predicted")),
      el("span", { class: "times" }, times(segment, phase.max_tokens)),
    );
  });
  const more = phase.segments.length - rows.length;
  if (more > 0) rows.push(el("li", { class: "more" }, `and ${more} more segments`));
  return rows;
}

function head(phase) {
  const parts = [`up to ${phase.max_tokens} ${phase.phase === "decode" ? "sequences" : "tokens"} a step`];
  const last = phase.segments[0]?.measured?.last;
  if (last) parts.push(`last steps: ${number(last.tokens)} ${last.tokens === 1 ? "token" : "tokens"} after ${number(last.past)}`);
  if (phase.transfers.length > 0) {
    const sum = phase.transfers.reduce((all, transfer) => all + transfer.bytes, 0);
    parts.push(`${phase.transfers.length} copies between memories, at most ${bytes(sum)}`);
  }
  if (phase.streamed.length > 0) parts.push(`weights of ${phase.streamed.length} parts streamed`);
  return parts.join(" · ");
}

/** Draws a plan into a box; what is there is kept as long as the placement is the same. */
export function draw(box, plan) {
  const same = JSON.stringify([plan.model, plan.version, plan.phases.map((phase) => phase.units)]);
  if (box.placement === same) {
    box.plan = plan;
    box.refresh();
    return;
  }
  box.placement = same;
  box.plan = plan;
  const devices = [...new Set(plan.phases.flatMap((phase) => phase.units.map((unit) => unit.device)))];
  const legend = el("p", { class: "legend" }, ...devices.sort().map(chip));
  const parts = plan.phases.map((phase, index) => {
    const note = el("p", { class: "note" });
    const list = el("ul", { class: "segments" });
    const refresh = () => {
      note.textContent = head(box.plan.phases[index]);
      list.replaceChildren(...segments(box.plan.phases[index]));
    };
    refresh();
    const title = el("div", { class: "title" }, el("h3", {}, PHASES[phase.phase]), note);
    const section = el("div", { class: "phase", "data-phase": phase.phase }, title, ...grid(() => box.plan.phases[index]), list);
    return { section, refresh };
  });
  box.refresh = () => parts.forEach((part) => part.refresh());
  box.replaceChildren(legend, ...parts.map((part) => part.section));
}

/** Figures of a plan's prediction, as entries of a list. */
export function totals(prediction) {
  if (!prediction) return [];
  const { first_token_seconds: first, token_seconds: token, token_joules: joules } = prediction.totals;
  const entries = [
    ["First token", seconds(prediction.overlapped?.first_token_seconds ?? first)],
    ["Tokens/s", number(1 / token)],
  ];
  if (joules > 0) entries.push(["Energy", `${joules.toPrecision(3)} J/token`]);
  return entries;
}

/** Reasons of a plan, and the placements that it was chosen from. */
export function why(plan) {
  const rows = plan.rejected.map((one) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, one.name),
      el("td", { class: "number" }, seconds(one.totals?.first_token_seconds)),
      el("td", { class: "number" }, one.totals ? number(1 / one.totals.token_seconds) : "–"),
      el("td", {}, one.why),
    ),
  );
  const header = ["Placement", "First token", "Tokens/s", "Why not"].map((name, index) =>
    el("th", { scope: "col", class: index === 1 || index === 2 ? "number" : null }, name),
  );
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...header)), el("tbody", {}, ...rows));
  const reasons = el("ul", { class: "reasons" }, ...plan.reasons.map((reason) => el("li", {}, reason)));
  return rows.length > 0 ? [reasons, el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Placements" }, table)] : [reasons];
}
