// The conversation.

import { call, events } from "./api.js";
import { $, el, seconds } from "./dom.js";

let messages = [];
let running = null;
let model = () => "default";
let ended = () => {};

function bubble(role, text = "") {
  $("welcome").hidden = true;
  const content = el("div", { class: "content" }, text);
  const foot = el("div", { class: "foot" });
  const article = el("article", { class: `turn ${role}`, "aria-label": role === "user" ? "You" : "Reply" }, content, foot);
  $("log").append(article);
  follow();
  return { article, content, foot };
}

/** Keeps the end in sight, unless the reader went back. */
function follow() {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function busy(is) {
  $("stop").hidden = !is;
  $("send").disabled = is;
}

function body() {
  const request = {
    model: model(),
    messages,
    stream: true,
    stream_options: { include_usage: true },
    max_completion_tokens: Number($("max-tokens").value) || 512,
  };
  const temperature = $("temperature").value;
  if (temperature !== "") request.temperature = Number(temperature);
  return request;
}

function figures(last, reason, stopped) {
  const parts = [];
  const timings = last?.timings;
  if (timings) {
    parts.push(`${timings.predicted_n} tokens`, `${timings.predicted_per_second.toFixed(1)} tokens/s`);
    parts.push(`prompt ${timings.prompt_n + timings.cache_n} in ${seconds(timings.prompt_ms / 1e3)}`);
    if (timings.cache_n > 0) parts.push(`${timings.cache_n} cached`);
  }
  const devices = last?.trefoil;
  if (devices) {
    parts.push(`prefill ${devices.prefill_devices.join(" + ")}`, `decode ${devices.decode_devices.join(" + ")}`);
  }
  if (stopped) parts.push("stopped");
  else if (reason === "length") parts.push("cut at the most tokens");
  return parts.join(" · ");
}

async function send(text) {
  const own = messages; // "New chat" begins another list
  own.push({ role: "user", content: text });
  bubble("user", text);
  const reply = bubble("assistant");
  reply.article.setAttribute("aria-busy", "true");
  const stop = new AbortController();
  running = stop;
  busy(true);
  let [said, last, reason] = ["", null, null];
  try {
    const response = await call("/v1/chat/completions", { body: body(), signal: stop.signal });
    for await (const event of events(response)) {
      last = event;
      const choice = event.choices[0];
      reason = choice?.finish_reason ?? reason;
      if (choice?.delta?.content) {
        said += choice.delta.content;
        reply.content.textContent = said;
        follow();
      }
    }
    reply.foot.textContent = figures(last, reason, false);
  } catch (error) {
    if (stop.signal.aborted) {
      reply.foot.textContent = figures(null, null, true);
    } else {
      reply.foot.classList.add("error");
      reply.foot.textContent = error.message;
      reply.foot.setAttribute("role", "alert");
    }
  }
  if (said) own.push({ role: "assistant", content: said });
  else own.pop();
  reply.article.removeAttribute("aria-busy");
  running = null;
  busy(false);
  follow();
  ended();
}

/** Sets the chat up; `of` tells the chosen model, `after` is called when a reply ended. */
export function chat(of, after) {
  model = of;
  ended = after;
  const input = $("message");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text || running) return;
    input.value = "";
    send(text);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("clear").addEventListener("click", () => {
    running?.abort();
    messages = [];
    for (const turn of $("log").querySelectorAll(".turn")) turn.remove();
    $("welcome").hidden = false;
    input.focus();
  });
}
