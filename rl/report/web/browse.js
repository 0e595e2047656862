// The trajectories: a list of groups to filter and search, and one of them with its members side by side.

const GROUPS = RUNS.flatMap((run, number) => run.groups.map((group, place) => ({ ...group, run: number, number: place })));
const LISTED = 200;
const OUTCOMES = {
  all: ["every outcome", () => true],
  differ: ["rewards differ", (group) => new Set(group.members.map((m) => m.reward)).size > 1],
  equal: ["rewards all equal", (group) => new Set(group.members.map((m) => m.reward)).size === 1],
  success: ["some success", (group) => group.members.some((m) => m.success)],
  none: ["no success", (group) => !group.members.some((m) => m.success)],
  truncated: ["some truncated", (group) => group.members.some((m) => m.outcome === "truncated")],
  failed: ["some infrastructure failure", (group) => group.members.some((m) => m.outcome === "infra_error")],
};
const ORDERS = {
  oldest: ["earliest step first", (a, b) => (stepOf(a) ?? Infinity) - (stepOf(b) ?? Infinity) || 0],
  newest: ["latest step first", (a, b) => (stepOf(b) ?? -1) - (stepOf(a) ?? -1)],
  best: ["highest mean reward", (a, b) => (meanReward(b) ?? -Infinity) - (meanReward(a) ?? -Infinity) || 0],
  worst: ["lowest mean reward", (a, b) => (meanReward(a) ?? Infinity) - (meanReward(b) ?? Infinity) || 0],
  longest: ["most tokens", (a, b) => tokensOf(b) - tokensOf(a)],
};
const TRAINED = { train: "trained", eval: "evaluation", not: "not trained", all: "trained or not" };
const state = { run: "all", trained: GROUPS.some((group) => group.step !== null) ? "train" : "all", source: "all", outcome: "all",
  order: "oldest", from: "", to: "", text: "", found: null, shown: LISTED, group: null, beside: null, tokens: false, mode: "mask",
  search: 0, render: 0 };
const parts = {};

function meanReward(group) {
  const found = group.members.map((member) => member.reward).filter((reward) => reward !== null);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
}

function tokensOf(group) {
  return group.members.reduce((sum, member) => sum + member.tokens, 0);
}

// The step that trained a group; of an evaluation the policy version, which is the number of the step before it.
function stepOf(group) {
  if (group.split !== "eval") return group.step;
  const member = group.members.find((one) => one.versions.length);
  return member ? member.versions[1] : null;
}

function where(group) {
  const step = stepOf(group);
  if (group.split === "eval") return step === null ? "evaluation" : `evaluation of version ${step}`;
  return step === null ? "not trained" : `step ${step}`;
}

function showTrajectories(view) {
  for (const run of RUNS) {
    if (run.stride > 1) view.append(el("p", { class: "notice" }, `${run.label}: this page holds each ${ordinal(run.stride)} group, ` +
      `${run.groups.length.toLocaleString("en")} of ${run.total.toLocaleString("en")}. All of them are in ${run.directory}/trajectories.`));
  }
  parts.count = el("div", { class: "dim", role: "status", style: "padding: 6px 10px" });
  parts.list = el("ol", { onkeydown: (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); nextGroup(step).then(() => state.group.button && state.group.button.focus()); }
  } });
  parts.more = el("button", { onclick: () => { state.shown += LISTED; listGroups(); } }, "Show more");
  parts.tools = toolbar();
  parts.views = el("div", {});
  parts.readout = el("div", { class: "readout-bar", hidden: true });
  parts.group = el("article", { tabindex: -1, "aria-label": "Group" }, parts.tools.bar, parts.views, parts.readout);
  view.append(filters(), el("div", { class: "browser" }, el("div", { class: "list" }, parts.count, parts.list, parts.more), parts.group));
  listGroups();
}

function filters() {
  const set = (name) => (value) => { state[name] = value; state.shown = LISTED; listGroups(); };
  const options = (table) => Object.entries(table).map(([value, entry]) => [value, Array.isArray(entry) ? entry[0] : entry]);
  const sources = [...new Set(GROUPS.map((group) => group.source))].sort();
  parts.search = el("input", { type: "search", placeholder: "Search messages, tasks ( / )", "aria-label": "Search messages and tasks",
    oninput: () => { clearTimeout(state.timer); state.timer = setTimeout(() => search(parts.search.value), 250); } });
  const step = (name, label) => el("input", { type: "number", min: 0, "aria-label": label, placeholder: label, class: "step",
    oninput: (event) => set(name)(event.target.value) });
  parts.trained = select("Trained", options(TRAINED), set("trained"));
  parts.trained.value = state.trained;
  return el("div", { class: "row filters", role: "search" }, parts.search,
    RUNS.length > 1 ? select("Run", [["all", "both runs"], ...RUNS.map((run, number) => [String(number), run.label])], set("run")) : null,
    parts.trained,
    sources.length > 1 ? select("Source", [["all", "every source"], ...sources.map((name) => [name, name])], set("source")) : null,
    select("Outcome", options(OUTCOMES), set("outcome")), select("Order", options(ORDERS), set("order")),
    step("from", "from step"), step("to", "to step"));
}

function ordinal(count) {
  const ending = count % 100 > 10 && count % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][count % 10] || "th";
  return `${count}${ending}`;
}

function fits(group) {
  const trained = group.split === "eval" ? "eval" : group.step === null ? "not" : "train", step = stepOf(group);
  return (state.run === "all" || group.run === Number(state.run)) &&
    (state.trained === "all" || state.trained === trained) &&
    (state.source === "all" || state.source === group.source) &&
    (state.from === "" || (step !== null && step >= Number(state.from))) &&
    (state.to === "" || (step !== null && step <= Number(state.to))) &&
    OUTCOMES[state.outcome][1](group) && (state.found === null || state.found.has(group));
}

function listGroups() {
  const focused = GROUPS.find((group) => group.button && group.button === document.activeElement);
  parts.listed = GROUPS.filter(fits).sort(ORDERS[state.order][1]);
  for (const group of GROUPS) group.button = null;
  parts.list.replaceChildren(...parts.listed.slice(0, state.shown).map(listEntry));
  parts.more.hidden = parts.listed.length <= state.shown;
  if (focused && focused.button) focused.button.focus();
  tellCount();
}

function tellCount(progress = "") {
  const members = parts.listed.reduce((sum, group) => sum + group.members.length, 0);
  parts.count.textContent = `${plural(parts.listed.length, "group")}, ${members.toLocaleString("en")} trajectories${progress}`;
}

// One stop of the Tab key for the whole list: the open group, or else the first. Arrow keys go on from there.
function listEntry(group, place) {
  const open = group === state.group;
  group.button = el("button", { "aria-current": open ? "true" : null,
    tabindex: open || (place === 0 && !parts.listed.includes(state.group)) ? 0 : -1, onclick: () => openGroup(group, true) },
  el("span", { class: "task", title: group.task }, swatch(group.run), group.task),
  el("span", { class: "dim" }, `${where(group)} · ${group.source}`),
  el("span", { class: "rewards" }, group.members.map((member) => el("span",
    { class: member.success ? "success" : member.outcome === "infra_error" ? "failed" : null },
    member.reward === null ? "failed" : `${member.success ? "✓ " : ""}${number(member.reward, 3)}`))));
  return el("li", {}, group.button);
}

// Looks through the packed messages of all groups, a few at a time, and lists what it finds meanwhile.
async function search(text) {
  const mine = ++state.search, wanted = text.trim().toLowerCase();
  state.text = wanted;
  state.found = wanted ? new Set() : null;
  for (let i = 0; wanted && i < GROUPS.length; i += 32) {
    const some = GROUPS.slice(i, i + 32);
    const hits = await Promise.all(some.map((group) => mentions(group, wanted).catch(() => false)));
    if (mine !== state.search) return;
    some.forEach((group, place) => { if (hits[place]) state.found.add(group); });
    if (i % 512 === 0) { listGroups(); tellCount(`; searched ${i + some.length} of ${GROUPS.length} groups`); }
  }
  listGroups();
  if (state.group && !state.tokens) renderGroup();
}

async function mentions(group, wanted) {
  if (`${group.task} ${group.id}`.toLowerCase().includes(wanted)) return true;
  const { prompt, members } = await unpackJson(`messages-${group.run}-${group.number}`);
  const said = [...members.flatMap((member) => [...member.messages.map(spokenText), member.error || ""]), ...prompt.map(spokenText)];
  return said.some((text) => text.toLowerCase().includes(wanted));
}

// What `messageView` shows of a message.
function spokenText(message) {
  return [message.reasoning_content, contentText(message.content), ...(message.tool_calls || []).map(callText), message.malformed]
    .filter(Boolean).join("\n");
}

function contentText(content) {
  return content === null || content === undefined ? "" : typeof content === "string" ? content : JSON.stringify(content, null, 1);
}

function callText(call) {
  const called = call.function || call, given = called.arguments;
  return `→ ${called.name}(${typeof given === "string" ? given : JSON.stringify(given, null, 1)})`;
}

function toolbar() {
  const messages = el("button", { onclick: () => showTokens(false) }, "Messages");
  const tokens = el("button", { onclick: () => showTokens(true) }, "Tokens");
  const mode = select("Colour tokens by", Object.entries(COLOURS), (value) => { state.mode = value; recolour(); });
  const beside = el("span", {}), legend = el("span", { class: "legend" });
  const ledger = el("button", { onclick: () => state.group && showLedger(state.group) }, "Ledger of this task");
  return { bar: el("div", { class: "row" }, messages, tokens, mode, ledger, beside, legend), messages, tokens, mode, beside, legend };
}

function setTools() {
  const { messages, tokens, mode, legend } = parts.tools;
  messages.setAttribute("aria-pressed", String(!state.tokens));
  tokens.setAttribute("aria-pressed", String(state.tokens));
  mode.hidden = legend.hidden = !state.tokens;
  mode.value = state.mode;
}

async function openGroup(group, focus) {
  const before = state.group;
  state.group = group;
  if (before !== group) {
    state.beside = null;
    for (const [one, on] of [[before, false], [group, true]]) {
      if (!one || !one.button) continue;
      one.button.tabIndex = on ? 0 : -1;
      if (on) one.button.setAttribute("aria-current", "true"); else one.button.removeAttribute("aria-current");
    }
    const others = GROUPS.filter((other) => other !== group && other.task === group.task);
    parts.tools.beside.replaceChildren(...(others.length ? [besideChoice(others)] : []));
  }
  setHash();
  await renderGroup();
  if (before !== group && parts.group.getBoundingClientRect().top < 0) parts.group.scrollIntoView({ block: "start" });
  if (focus) { parts.group.focus({ preventScroll: true }); if (innerWidth <= 760) parts.group.scrollIntoView({ block: "start" }); }
}

function setHash() {
  const group = state.group;
  history.replaceState(null, "", group ? `#trajectories/${group.run}/${group.segment}-${group.record}` : "#trajectories");
}

// Draws the open group anew. Of several calls that wait for their data the last one counts.
async function renderGroup() {
  const mine = ++state.render, shown = [state.group, state.beside].filter(Boolean), tokens = state.tokens;
  setTools();
  let views;
  try {
    const scale = tokens ? scaleOf((await Promise.all(shown.map(samplesOf))).flat()) : null;
    const drawn = [];
    views = await Promise.all(shown.map((group) => groupView(group, scale, drawn)));
    if (mine !== state.render) return;
    tokenViews.splice(0, tokenViews.length, ...drawn);
    state.scale = scale;
  } catch (error) {
    if (mine !== state.render) return;
    views = [el("p", { class: "bad", role: "alert" }, `This group cannot be shown: ${error.message}`)];
  }
  const scrolled = [...parts.views.querySelectorAll(".members")].map((one) => one.scrollLeft);
  parts.views.className = views.length > 1 ? "beside" : "";
  parts.views.replaceChildren(...views);
  parts.views.querySelectorAll(".members").forEach((one, place) => { one.scrollLeft = scrolled[place] || 0; });
  parts.readout.hidden = true;
  if (tokens) recolour();
}

function showTokens(tokens) {
  state.tokens = tokens;
  if (state.group) renderGroup();
}

function besideChoice(others) {
  const label = (other) => `${RUNS.length > 1 ? `${RUNS[other.run].label}, ` : ""}${where(other)}, mean ${number(meanReward(other), 3)}`;
  return select("Another attempt at this task beside it", [["", `beside it: none of ${others.length}`],
    ...others.map((other, place) => [String(place), label(other)])],
  (value) => { state.beside = value === "" ? null : others[Number(value)]; renderGroup(); });
}

async function groupView(group, scale, drawn) {
  const content = await once(`messages-${group.run}-${group.number}`, unpackJson);
  const said = content.members.filter((member) => member.messages.length).map((member) => member.messages);
  const common = said.length ? commonBeginning(said) : content.prompt;
  const members = await Promise.all(group.members.map((member, place) =>
    memberView(group, place, content.members[place], common.length, scale, drawn)));
  return el("section", {},
    el("h2", {}, swatch(group.run), group.task),
    el("p", { class: "dim" }, `${RUNS.length > 1 ? `${RUNS[group.run].label} · ` : ""}${where(group)} · source ${group.source || "–"} · ` +
      `group ${group.id} · segment ${group.segment}, record ${group.record}`),
    scale || !common.length ? null : el("details", { open: common.length < 4 },
      el("summary", {}, `Common beginning (${plural(common.length, "message")})`), common.map(messageView)),
    el("div", { class: "members", tabindex: 0, role: "region", "aria-label": "Trajectories of the group" }, members));
}

function commonBeginning(lists) {
  let length = 0;
  while (lists.every((list) => length < list.length && JSON.stringify(list[length]) === JSON.stringify(lists[0][length])) &&
    lists[0][length].role !== "assistant") length++;
  return lists[0].slice(0, length);
}

async function memberView(group, place, content, common, scale, drawn) {
  const member = group.members[place];
  const facts = [member.stop, plural(member.turns, "turn"), plural(member.tokens, "token"), versionsText(member.versions)];
  if (member.advantage !== null) facts.push(`advantage ${number(member.advantage, 3)}`);
  const measured = Object.entries(content.metrics).map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { class: "number" }, number(value))));
  const body = scale ? await tokenView(group, place, drawn) : el("div", {}, content.messages.slice(common).map(messageView));
  return el("section", { class: "member", "aria-label": `Trajectory ${place + 1}` },
    el("h3", {}, `${place + 1} · `, member.reward === null ? el("span", { class: "bad" }, "infrastructure failure") :
      [`reward ${number(member.reward)} `, el("span", { class: member.success ? "good" : "dim" }, member.success ? "✓ success" : "no success")]),
    el("p", { class: "dim", style: "margin: 0 0 4px" }, facts.join(" · ")),
    spansBar(content.spans),
    Object.keys(content.parts).length ? el("p", { style: "margin: 0 0 4px" }, Object.entries(content.parts).map(([name, value]) => `${name} ${number(value)}`).join(", ")) : null,
    content.error ? marked(content.error, "pre", "bad") : null,
    measured.length ? el("details", {}, el("summary", {}, "Measured"), el("table", {}, el("tbody", {}, measured))) : null,
    body);
}

// Where the time of a trajectory went, from left to right.
function spansBar(spans) {
  if (!spans.length) return null;
  const start = spans[0].start, length = Math.max(spans[spans.length - 1].end - start, 1e-9), sums = new Map();
  for (const one of spans) sums.set(one.name, (sums.get(one.name) || 0) + one.end - one.start);
  const words = [...sums].map(([name, sum]) => `${STAGES[name] || name} ${seconds(sum)}`).join(", ");
  return el("div", { class: "spans", role: "img", "aria-label": words, title: words }, spans.map((one) => el("i", {
    style: `left: ${(100 * (one.start - start)) / length}%; width: ${(100 * (one.end - one.start)) / length}%; ` +
      `background: var(--stage-${one.name in STAGES ? one.name : "other"})` })));
}

function messageView(message) {
  return el("div", { class: `message ${message.role === "assistant" ? "assistant" : ""}` }, el("div", { class: "role" }, message.role),
    message.reasoning_content ? el("details", { open: true }, el("summary", { class: "dim" }, "thinks"), marked(message.reasoning_content)) : null,
    contentText(message.content) ? marked(contentText(message.content)) : null,
    (message.tool_calls || []).map((call) => marked(callText(call), "pre")),
    message.malformed ? marked(`malformed: ${message.malformed}`, "div", "bad") : null);
}

// The text, with what was searched for marked.
function marked(text, tag = "div", kind = "") {
  const box = el(tag, { class: `text ${kind}` }), lower = text.toLowerCase();
  let from = 0;
  for (let at; state.text && lower.length === text.length && (at = lower.indexOf(state.text, from)) >= 0; from = at + state.text.length) {
    box.append(text.slice(from, at), el("mark", {}, text.slice(at, at + state.text.length)));
  }
  box.append(text.slice(from));
  return box;
}

async function showLedger(group) {
  const entries = (await once(`ledger-${group.run}`, unpackJson))[group.task] || [];
  if (group !== state.group) return;
  openDialog(`Ledger: ${group.task}`, entries.length ? el("table", {},
    el("thead", {}, el("tr", {}, ["issue", "event", "details"].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, entries.map((entry) => el("tr", {}, entry.map((text, column) =>
      el("td", {}, column === 0 && text === group.id ? el("b", {}, text) : text)))))) :
    el("p", {}, "The ledger has no entry of this task: evaluations are not in it."));
}
