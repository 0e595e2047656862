"use strict";
// Small helpers: elements, numbers, times. Text of a run only ever becomes a text node, never markup.

const PAGE = JSON.parse(document.getElementById("data").textContent);
const RUNS = PAGE.runs;
for (const run of RUNS) {
  const same = RUNS.filter((other) => other.name === run.name);
  const folder = (one) => one.directory.split("/").filter(Boolean).pop();
  const told = same.some((other) => other !== run && folder(other) === folder(run)) ? run.directory : folder(run);
  run.label = same.length > 1 ? `${run.name} (${told})` : run.name;
}

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-3) return value.toExponential(2);
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(digits)).toString();
}

function seconds(value) {
  if (value < 90) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  const whole = Math.round(value);
  const hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  return hours ? `${hours} h ${String(minutes).padStart(2, "0")} min` : `${minutes} min ${whole % 60} s`;
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function versionsText(versions) {
  const ends = [...new Set(versions)];
  return ends.length ? `version${ends.length > 1 ? "s" : ""} ${ends.join("–")}` : "no version";
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function swatch(run) {
  return RUNS.length > 1 ? el("span", { class: "swatch", style: `background: var(--run-${run})` }) : null;
}

function select(label, options, onchange) {
  const made = el("select", { "aria-label": label, title: label, onchange: () => onchange(made.value) },
    options.map(([value, text]) => el("option", { value }, text)));
  return made;
}

// For those who hear the page: what a key has just shown.
function say(text) {
  document.getElementById("say").textContent = text;
}

function openDialog(title, ...content) {
  const dialog = document.getElementById("dialog");
  dialog.replaceChildren(
    el("div", { class: "row" }, el("h2", { id: "dialog-title" }, title),
      el("button", { onclick: () => dialog.close(), autofocus: true }, "Close")),
    ...content,
  );
  dialog.showModal();
}
