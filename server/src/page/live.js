// Load, devices and recent requests, from one look to the next.

import { $, bytes, chip, el, kind, number, percent, seconds } from "./dom.js";

const HISTORY = 60;
const rates = [];
let before = null;

/** Per second, between two looks; `null` where there was only one. */
function rate(now, then, time) {
  return then === undefined || then === null || !(time > 0) ? null : Math.max(0, now - then) / time;
}

/** A line of the last minute. */
function spark(values) {
  const most = Math.max(1, ...values);
  const points = values.map((value, index) => `${(index * 100) / (HISTORY - 1)},${(22 - (20 * value) / most).toFixed(1)}`);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  svg.append(line);
  return svg;
}

/** A bar of parts of a whole. */
function meter(label, parts, text) {
  const bar = el("span", { class: "meter", role: "img", "aria-label": `${label}: ${text}` });
  for (const [share, name] of parts) {
    const part = el("span", { class: name });
    part.style.setProperty("--share", Math.min(1, Math.max(0, share)));
    bar.append(part);
  }
  return el("div", { class: "measure" }, el("span", { class: "name" }, label), bar, el("span", { class: "value" }, text));
}

function tile(name, value, note, ...more) {
  return el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, el("strong", {}, value), el("span", { class: "note" }, note), ...more));
}

function tiles(stats, model, time) {
  const now = stats.trefoil.models.find((one) => one.model === model) ?? stats.trefoil.models[0];
  const then = before?.stats.trefoil.models.find((one) => one.model === now?.model);
  const load = now?.load;
  if (!load) return [tile("Requests", number(now?.requests_total ?? 0), "so far")];
  const made = rate(now.steps?.decode?.tokens ?? 0, then ? (then.steps?.decode?.tokens ?? 0) : null, time);
  const read = rate(now.steps?.prefill?.tokens ?? 0, then ? (then.steps?.prefill?.tokens ?? 0) : null, time);
  rates.push(made ?? 0);
  if (rates.length > HISTORY) rates.shift();
  const { used, cached, free } = load.kv_pages;
  const pages = used + cached + free;
  return [
    tile("Tokens/s", number(made), `made now · ${number(read)} read`, spark([...Array(HISTORY - rates.length).fill(0), ...rates])),
    tile("Batch", `${load.running}`, `of ${load.max_sequences} sequences`, meter("share", [[load.running / load.max_sequences, "fill"]], percent(load.running / load.max_sequences))),
    tile("Queue", `${load.waiting}`, `of ${load.queue_capacity} places`, meter("share", [[load.waiting / load.queue_capacity, "fill"]], percent(load.waiting / load.queue_capacity))),
    tile("KV pages", number(used), `of ${number(pages)} · ${number(cached)} cached`, meter("share", [[used / pages, "fill"], [cached / pages, "soft"]], percent((used + cached) / pages))),
  ];
}

function device(one, time) {
  const then = before?.devices.data.find((other) => other.id === one.id);
  const busy = rate(one.busy_seconds_total, then?.busy_seconds_total, time);
  const [read, made] = ["prefill", "decode"].map((phase) => rate(one.tokens_total[phase], then?.tokens_total[phase], time));
  const memory = one.memory;
  const total = memory.total_bytes;
  const holders = Object.entries(memory.holders).sort(([, a], [, b]) => b - a);
  const rows = [
    meter("Busy", [[busy ?? 0, kind(one.id)]], percent(busy === null ? null : Math.min(1, busy))),
    meter("Memory", total ? [[memory.used_bytes / total, kind(one.id)]] : [], `${bytes(memory.used_bytes)} of ${bytes(total)} ${memory.domain}`),
  ];
  const facts = [`${number(made)} tokens/s made`, `${number(read)} read`];
  if (one.power_watts !== null) facts.push(`${number(one.power_watts)} W`);
  const held = holders.map(([name, value]) => `${name} ${bytes(value)}`).join(", ");
  return el(
    "article",
    { class: "device", "data-device": one.id },
    el("header", {}, chip(one.id), el("span", { class: "product" }, one.product)),
    ...rows,
    el("p", { class: "note" }, facts.join(" · ")),
    held ? el("p", { class: "note" }, held) : null,
  );
}

function request(one) {
  const cell = (text) => el("td", { class: "number" }, text);
  return el(
    "tr",
    {},
    el("td", {}, new Date(one.ended * 1000).toLocaleTimeString()),
    el("td", {}, one.model),
    cell(number(one.prompt_tokens)),
    cell(number(one.cached_tokens)),
    cell(number(one.generated_tokens)),
    cell(seconds(one.time_to_first_token)),
    cell(number(one.tokens_per_second)),
    el("td", { class: `outcome ${one.outcome}` }, one.outcome.replace("_", " ")),
  );
}

/** Shows one look at the server. */
export function show(stats, devices, model, at) {
  const time = before ? (at - before.at) / 1000 : 0;
  $("tiles").replaceChildren(...tiles(stats, model, time));
  // A device that is only there to be named, and was not, is of no interest.
  const used = devices.data.filter((one) => !one.only_when_named || Object.keys(one.units).length > 0);
  $("devices").replaceChildren(...used.map((one) => device(one, time)));
  const rows = stats.trefoil.recent.map(request);
  if (rows.length === 0) rows.push(el("tr", {}, el("td", { colspan: 8, class: "note" }, "No request so far.")));
  $("recent").replaceChildren(...rows);
  before = { stats, devices, at };
}
