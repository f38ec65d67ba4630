// Making elements and writing figures. Text is always set as text, never as HTML.

/** An element with attributes, event listeners (`onclick`) and children. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : 2);

/** A time in the unit that suits it; a dash where it is not known. */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const [scaled, unit] =
    value >= 1 ? [value, "s"] : value >= 1e-3 ? [value * 1e3, "ms"] : [value * 1e6, "µs"];
  return `${scaled.toFixed(digits(scaled))} ${unit}`;
}

/** Bytes in binary multiples. */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit + 1 < names.length) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(digits(value))} ${names[unit]}`;
}

/** A number with as many digits as tell something. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const most = Number.isInteger(value) || value >= 100 ? 0 : 1;
  return value.toLocaleString("en", { minimumFractionDigits: most, maximumFractionDigits: most });
}

/** A share as percent, with a sign where asked. */
export function percent(value, signed = false) {
  if (value === null || value === undefined) return "–";
  const text = `${(value * 100).toFixed(0)} %`;
  return signed && value > 0 ? `+${text}` : text;
}

/** Sort of a device, which has a colour: `gpu0` is a gpu. */
export function kind(device) {
  const name = device.replace(/[0-9].*$/, "");
  return ["cpu", "gpu", "npu"].includes(name) ? name : "other";
}

/** A device's name in its colour. */
export const chip = (device) => el("span", { class: `chip ${kind(device)}` }, device);
