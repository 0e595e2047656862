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
  oldest: ["earliest step first", (a, b) => (a.step ?? Infinity) - (b.step ?? Infinity) || 0],
  newest: ["latest step first", (a, b) => (b.step ?? -1) - (a.step ?? -1)],
  best: ["highest mean reward", (a, b) => meanReward(b) - meanReward(a)],
  worst: ["lowest mean reward", (a, b) => meanReward(a) - meanReward(b)],
  longest: ["most tokens", (a, b) => tokensOf(b) - tokensOf(a)],
};
const TRAINED = { all: "trained or not", train: "trained", eval: "evaluation", not: "not trained" };
const state = { run: "all", trained: "all", source: "all", outcome: "all", order: "oldest", from: "", to: "", text: "",
  found: null, shown: LISTED, group: null, beside: null, tokens: false, mode: "mask", search: 0 };
const parts = {};

const rewards = (group) => group.members.map((m) => m.reward).filter((reward) => reward !== null);
const meanReward = (group) => (rewards(group).length ? rewards(group).reduce((a, b) => a + b, 0) / rewards(group).length : -Infinity);
const tokensOf = (group) => group.members.reduce((sum, member) => sum + member.tokens, 0);

function showTrajectories(view) {
  RUNS.forEach((run) => {
    if (run.stride > 1) view.append(el("p", { class: "notice" }, `${run.name}: this page holds each ${ordinal(run.stride)} group, ` +
      `${run.groups.length.toLocaleString("en")} of ${run.total.toLocaleString("en")}. All of them are in ${run.directory}/trajectories.`));
  });
  const set = (name) => (value) => { state[name] = value; state.shown = LISTED; listGroups(); };
  const options = (table) => Object.entries(table).map(([value, entry]) => [value, Array.isArray(entry) ? entry[0] : entry]);
  const sources = [...new Set(GROUPS.map((group) => group.source))].sort();
  parts.search = el("input", { type: "search", placeholder: "Search messages, tasks ( / )", "aria-label": "Search messages and tasks",
    oninput: () => { const text = parts.search.value; clearTimeout(state.timer); state.timer = setTimeout(() => search(text), 250); } });
  const step = (name, label) => el("input", { type: "number", min: 1, "aria-label": label, placeholder: label, class: "step",
    oninput: (event) => set(name)(event.target.value) });
  const filters = el("div", { class: "row filters", role: "search" }, parts.search,
    RUNS.length > 1 ? select("Run", [["all", "both runs"], ...RUNS.map((run, number) => [String(number), run.name])], set("run")) : null,
    select("Trained", options(TRAINED), set("trained")),
    sources.length > 1 ? select("Source", [["all", "every source"], ...sources.map((name) => [name, name])], set("source")) : null,
    select("Outcome", options(OUTCOMES), set("outcome")), select("Order", options(ORDERS), set("order")),
    step("from", "from step"), step("to", "to step"));
  parts.count = el("div", { class: "dim", role: "status", style: "padding: 6px 10px" });
  parts.list = el("ol", {});
  parts.more = el("button", { onclick: () => { state.shown += LISTED; listGroups(); } }, "Show more");
  parts.group = el("article", { tabindex: -1, "aria-label": "Group" });
  view.append(filters, el("div", { class: "browser" }, el("div", { class: "list" }, parts.count, parts.list, parts.more), parts.group));
  listGroups();
  if (!state.group && parts.listed.length) openGroup(parts.listed[0], false);
}

function ordinal(count) {
  const ending = count % 100 > 10 && count % 100 < 14 ? "th" : ["th", "st", "nd", "rd"][count % 10] || "th";
  return `${count}${ending}`;
}

function fits(group) {
  const trained = group.split === "eval" ? "eval" : group.step === null ? "not" : "train";
  return (state.run === "all" || group.run === Number(state.run)) &&
    (state.trained === "all" || state.trained === trained) &&
    (state.source === "all" || state.source === group.source) &&
    (state.from === "" || (group.step !== null && group.step >= Number(state.from))) &&
    (state.to === "" || (group.step !== null && group.step <= Number(state.to))) &&
    OUTCOMES[state.outcome][1](group) && (state.found === null || state.found.has(group));
}

function listGroups() {
  parts.listed = GROUPS.filter(fits).sort(ORDERS[state.order][1]);
  parts.list.replaceChildren(...parts.listed.slice(0, state.shown).map(listEntry));
  parts.more.hidden = parts.listed.length <= state.shown;
  tellCount();
}

function tellCount(progress = "") {
  const members = parts.listed.reduce((sum, group) => sum + group.members.length, 0);
  parts.count.textContent = `${plural(parts.listed.length, "group")}, ${members.toLocaleString("en")} trajectories${progress}`;
}

function where(group) {
  if (group.split === "eval") return "evaluation";
  return group.step === null ? "not trained" : `step ${group.step}`;
}

function listEntry(group) {
  group.button = el("button", { "aria-current": group === state.group ? "true" : null, onclick: () => openGroup(group, true) },
    el("span", { class: "task" }, swatch(group.run), group.task), el("span", { class: "dim" }, `${where(group)} · ${group.source}`),
    el("span", { class: "rewards" }, group.members.map((member) => el("span",
      { class: member.success ? "success" : member.outcome === "infra_error" ? "failed" : null },
      member.reward === null ? "failed" : number(member.reward, 3)))));
  return el("li", {}, group.button);
}

// Looks through the packed messages of all groups, a few at a time, and lists what it finds meanwhile.
async function search(text) {
  const mine = ++state.search, wanted = text.trim().toLowerCase();
  state.text = wanted;
  state.found = wanted ? new Set() : null;
  if (wanted) {
    for (let i = 0; i < GROUPS.length && mine === state.search; i += 32) {
      const some = GROUPS.slice(i, i + 32);
      const hits = await Promise.all(some.map((group) => mentions(group, wanted)));
      if (mine !== state.search) return;
      some.forEach((group, place) => { if (hits[place]) state.found.add(group); });
      if (i % 256 === 0) { listGroups(); tellCount(`; searched ${i + some.length} of ${GROUPS.length} groups`); }
    }
  }
  if (mine !== state.search) return;
  listGroups();
  if (state.group) openGroup(state.group, false);
}

async function mentions(group, wanted) {
  if (`${group.task} ${group.id}`.toLowerCase().includes(wanted)) return true;
  const { members } = await unpackJson(`messages-${group.run}-${group.number}`);
  return members.some((member) => member.messages.some((message) => spokenText(message).toLowerCase().includes(wanted)));
}

function spokenText(message) {
  const calls = (message.tool_calls || []).map((call) => `${call.function.name} ${JSON.stringify(call.function.arguments)}`);
  return [message.role, message.reasoning_content, contentText(message.content), ...calls].filter(Boolean).join("\n");
}

function contentText(content) {
  return content === null || content === undefined ? "" : typeof content === "string" ? content : JSON.stringify(content, null, 1);
}

async function openGroup(group, focus) {
  if (state.group && state.group.button) state.group.button.removeAttribute("aria-current");
  if (state.group !== group) state.beside = null;
  state.group = group;
  if (group.button) group.button.setAttribute("aria-current", "true");
  history.replaceState(null, "", `#trajectories/${group.run}/${group.number}`);
  const others = GROUPS.filter((other) => other !== group && other.task === group.task);
  const shown = state.beside ? [group, state.beside] : [group];
  const views = await Promise.all(shown.map(groupView));
  if (state.group !== group) return;
  const mode = select("Colour tokens by", Object.entries(COLOURS), (value) => { state.mode = value; openGroup(group, false); });
  mode.value = state.mode;
  parts.group.replaceChildren(
    el("div", { class: "row" },
      el("button", { "aria-pressed": String(!state.tokens), onclick: () => showTokens(false) }, "Messages"),
      el("button", { "aria-pressed": String(state.tokens), onclick: () => showTokens(true) }, "Tokens"),
      state.tokens ? mode : null,
      el("button", { onclick: () => showLedger(group) }, "Ledger of this task"),
      others.length ? besideChoice(group, others) : null),
    ...views);
  if (focus) { parts.group.focus({ preventScroll: true }); parts.group.scrollIntoView({ block: "nearest" }); }
}

function showTokens(tokens) {
  state.tokens = tokens;
  if (state.group) openGroup(state.group, false);
}

function besideChoice(group, others) {
  const label = (other) => `${RUNS.length > 1 ? `${RUNS[other.run].name}, ` : ""}${where(other)}, mean ${number(meanReward(other), 3)}`;
  const made = select("Another attempt at this task beside it", [["", `beside it: none of ${others.length}`],
    ...others.map((other, place) => [String(place), label(other)])],
  (value) => { state.beside = value === "" ? null : others[Number(value)]; openGroup(group, false); });
  if (state.beside) made.value = String(others.indexOf(state.beside));
  return made;
}

async function groupView(group) {
  const content = await once(`messages-${group.run}-${group.number}`, unpackJson);
  const common = commonBeginning(content.members.filter((member) => member.messages.length).map((member) => member.messages));
  const members = await Promise.all(group.members.map((member, place) => memberView(group, place, content.members[place], common.length)));
  return el("section", {},
    el("h2", {}, swatch(group.run), group.task),
    el("p", { class: "dim" }, `${where(group)} · source ${group.source || "–"} · group ${group.id} · segment ${group.segment}, record ${group.record}`),
    state.tokens || !common.length ? null : el("details", { open: common.length < 4 }, el("summary", {}, `Common beginning (${plural(common.length, "message")})`),
      common.map(messageView)),
    el("div", { class: "members", tabindex: 0, role: "region", "aria-label": "Trajectories of the group" }, members));
}

function commonBeginning(lists) {
  if (!lists.length) return [];
  let length = 0;
  while (lists.every((list) => length < list.length && JSON.stringify(list[length]) === JSON.stringify(lists[0][length])) &&
    lists[0][length].role !== "assistant") length++;
  return lists[0].slice(0, length);
}

async function memberView(group, place, content, common) {
  const member = group.members[place];
  const facts = [member.stop, plural(member.turns, "turn"), plural(member.tokens, "token"), versionsText(member.versions)];
  if (member.advantage !== null) facts.push(`advantage ${number(member.advantage, 3)}`);
  const measured = Object.entries(content.metrics).map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { class: "number" }, number(value))));
  const body = state.tokens ? await tokenView(group, place, state.mode) : el("div", {}, content.messages.slice(common).map(messageView));
  return el("section", { class: "member", "aria-label": `Trajectory ${place + 1}` },
    el("h3", {}, `${place + 1} · `, member.reward === null ? el("span", { class: "bad" }, "infrastructure failure") :
      [`reward ${number(member.reward)} `, el("span", { class: member.success ? "good" : "dim" }, member.success ? "✓ success" : "no success")]),
    el("p", { class: "dim", style: "margin: 0 0 4px" }, facts.join(" · ")),
    spansBar(content.spans),
    Object.keys(content.parts).length ? el("p", { style: "margin: 0 0 4px" }, Object.entries(content.parts).map(([name, value]) => `${name} ${number(value)}`).join(", ")) : null,
    content.error ? el("pre", { class: "bad" }, content.error) : null,
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
    (message.tool_calls || []).map((call) => el("pre", {}, `→ ${call.function.name}(${argumentsText(call.function.arguments)})`)),
    message.malformed ? el("div", { class: "bad" }, `malformed: ${message.malformed}`) : null);
}

function argumentsText(given) {
  return typeof given === "string" ? given : JSON.stringify(given, null, 1);
}

// The text, with what was searched for marked.
function marked(text) {
  const box = el("div", { class: "text" });
  let from = 0;
  const lower = text.toLowerCase();
  for (let at; state.text && lower.length === text.length && (at = lower.indexOf(state.text, from)) >= 0; from = at + state.text.length) {
    box.append(text.slice(from, at), el("mark", {}, text.slice(at, at + state.text.length)));
  }
  box.append(text.slice(from));
  return box;
}

async function showLedger(group) {
  const entries = (await once(`ledger-${group.run}`, unpackJson))[group.task] || [];
  openDialog(`Ledger: ${group.task}`, entries.length ? el("table", {},
    el("thead", {}, el("tr", {}, ["issue", "event", "details"].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, entries.map((entry) => el("tr", {}, entry.map((text, column) =>
      el("td", {}, column === 0 && text === group.id ? el("b", {}, text) : text)))))) :
    el("p", {}, "The ledger has no entry of this task: evaluations are not in it."));
}
