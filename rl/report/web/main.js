// The frame of the page: what the runs are, the views, the keys.

const VIEWS = { curves: ["Curves", showCurves], timeline: ["Timeline", showTimeline],
  trajectories: ["Trajectories", showTrajectories], recipe: ["Recipe", showRecipe] };
const KEYS = [["1 2 3 4", "curves, timeline, trajectories, recipe"], ["j k", "next and previous group"], ["/", "search"],
  ["t", "messages or tokens"], ["c", "the next colour of tokens"], ["l", "the ledger's entries of the task"],
  ["← →", "in a chart, a timeline or tokens: one further"], ["?", "these keys"]];
const made = new Set();

function show(name, group) {
  for (const one of Object.keys(VIEWS)) {
    const on = one === name;
    document.getElementById(`view-${one}`).hidden = !on;
    const tab = document.getElementById(`tab-${one}`);
    if (on) tab.setAttribute("aria-current", "page"); else tab.removeAttribute("aria-current");
  }
  if (!made.has(name)) { made.add(name); VIEWS[name][1](document.getElementById(`view-${name}`)); }
  if (name !== "trajectories") return history.replaceState(null, "", `#${name}`);
  const wanted = group || state.group || parts.listed[0];
  if (wanted && wanted !== state.group) openGroup(wanted, false); else setHash();
}

// The view, and the group, that the address names.
function follow() {
  const [name, run, place] = location.hash.slice(1).split("/");
  const [segment, record] = (place || "").split("-").map(Number);
  const found = GROUPS.find((one) => one.run === Number(run) && one.segment === segment && one.record === record);
  show(Object.hasOwn(VIEWS, name) ? name : "curves", found);
  if (name !== "trajectories" || !found) return;
  if (!parts.listed.includes(found)) { state.trained = parts.trained.value = "all"; listGroups(); }
  reveal(found);
}

// Makes the list long enough to have a group, and shows it there.
function reveal(group) {
  const place = parts.listed.indexOf(group);
  if (place >= state.shown) { state.shown = place + LISTED; listGroups(); }
  if (group.button) group.button.scrollIntoView({ block: "nearest" });
}

function showRecipe(view) {
  for (const run of RUNS) view.append(el("h2", {}, run.label), el("pre", {}, run.recipe));
}

function stateOf(run) {
  if (!run.summary) return "goes on, or was killed";
  const gain = run.summary.eval_success_after !== null && run.summary.eval_success_after !== undefined && run.summary.eval_success_before !== null ?
    `, held-out success ${Math.round(100 * run.summary.eval_success_before)} % → ${Math.round(100 * run.summary.eval_success_after)} %` : "";
  return `${run.summary.exit_reason}, ${plural(run.summary.steps, "step")}, ${seconds(run.summary.wall_s)}${gain}`;
}

function begin() {
  document.title = `${RUNS.map((run) => run.label).join(" and ")} · Sluice report`;
  document.getElementById("title").textContent = RUNS.map((run) => run.label).join(" and ");
  document.getElementById("runs").append(...RUNS.map((run, number) => el("div", { class: "run" }, swatch(number), el("b", {}, run.label),
    `: ${stateOf(run)} · ${plural(run.total, "group")} · ${run.directory} · as of ${new Date(1000 * PAGE.written).toLocaleString("en")}`)));
  document.getElementById("tabs").append(...Object.entries(VIEWS).map(([name, [text]]) =>
    el("button", { id: `tab-${name}`, onclick: () => show(name) }, text)), el("button", { onclick: showKeys }, "Keys"));
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", follow);
  follow();
}

function showKeys() {
  openDialog("Keys", el("table", {}, el("tbody", {}, KEYS.map(([key, text]) => el("tr", {}, el("td", {}, el("b", {}, key)), el("td", {}, text))))));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("dialog").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const name = Object.keys(VIEWS)[Number(event.key) - 1];
  const browsing = !document.getElementById("view-trajectories").hidden;
  const step = { j: 1, k: -1 }[event.key];
  if (name) show(name);
  else if (event.key === "?") showKeys();
  else if (event.key === "/") { show("trajectories"); parts.search.focus(); }
  else if (browsing && step) nextGroup(step);
  else if (browsing && event.key === "t") showTokens(!state.tokens);
  else if (browsing && event.key === "c") nextColour();
  else if (browsing && event.key === "l" && state.group) showLedger(state.group);
  else return;
  event.preventDefault();
}

async function nextGroup(step) {
  const place = parts.listed.indexOf(state.group) + step;
  if (place < 0 || place >= parts.listed.length) return;
  reveal(parts.listed[place]);
  await openGroup(parts.listed[place], false);
}

function nextColour() {
  const modes = Object.keys(COLOURS);
  state.mode = modes[(modes.indexOf(state.mode) + 1) % modes.length];
  if (state.tokens) recolour(); else showTokens(true);
}

begin();
