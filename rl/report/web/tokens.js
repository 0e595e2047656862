// The tokens of a trajectory as the model saw them, coloured by what the run knows of each.

const COLOURS = {
  mask: "what the policy sampled", advantage: "advantage", ratio: "ratio of trainer to sampler", version: "policy version",
  logprob: "log-probability",
};
const TOKENS_AT_ONCE = 4000;
const BEFORE = 40; // tokens that are shown before the first sampled one; those before them are folded
const LEAST_RATIO = 0.01; // nats that full colour stands for at least: less is rounding
const tokenViews = []; // the samples that are drawn, to be coloured anew

// One entry a sample: its tokens and, for each sampled one, the numbers that are known.
function samplesOf(group) {
  return once(`tokens-${group.run}-${group.number}`, async (id) => samplesIn(await unpackArrays(id)));
}

function samplesIn(packed) {
  let token = 0, sampled = 0, trained = 0;
  return packed.about.samples.map(({ member, length, trained: count }) => {
    const versions = packed.versions.subarray(token, token + length), placeOf = new Int32Array(length).fill(-1), places = [];
    versions.forEach((version, at) => { if (version >= 0) { placeOf[at] = places.length; places.push(at); } });
    const part = {
      member, versions, places, placeOf, ids: packed.ids.subarray(token, token + length),
      logprobs: packed.logprobs.subarray(sampled, sampled + places.length),
      advantages: count ? packed.advantages.subarray(trained, trained + count) : null,
      logRatios: count ? packed.log_ratios.subarray(trained, trained + count) : null,
    };
    token += length; sampled += places.length; trained += count;
    return part;
  });
}

// The largest numbers of the samples, which full colour stands for.
function scaleOf(samples) {
  const scale = { advantage: 0, ratio: LEAST_RATIO, logprob: 0, oldest: Infinity, newest: -Infinity, trained: false };
  const widen = (name, values) => { for (const value of values || []) scale[name] = Math.max(scale[name], Math.abs(value)); };
  for (const sample of samples) {
    widen("advantage", sample.advantages);
    widen("ratio", sample.logRatios);
    widen("logprob", sample.logprobs);
    scale.trained ||= sample.advantages !== null;
    for (const at of sample.places) {
      scale.oldest = Math.min(scale.oldest, sample.versions[at]);
      scale.newest = Math.max(scale.newest, sample.versions[at]);
    }
  }
  scale.logprob = Math.min(scale.logprob, 8);
  return scale;
}

function tint(mode, sample, place, scale) {
  const shade = (name, share) => `rgba(var(--tint-${name}), calc(0.08 + var(--tint-most) * ${Math.min(1, share).toFixed(3)}))`;
  const signed = (value, most) => (value === 0 || !most ? "" : shade(value > 0 ? "up" : "down", Math.abs(value) / most));
  if (mode === "mask") return shade("sampled", 0.25);
  if (mode === "advantage") return sample.advantages ? signed(sample.advantages[place], scale.advantage) : "";
  if (mode === "ratio") return sample.logRatios ? signed(sample.logRatios[place], scale.ratio) : "";
  if (mode === "logprob") return scale.logprob ? shade("down", -sample.logprobs[place] / scale.logprob) : "";
  const range = scale.newest - scale.oldest || 1;
  return shade("age", 0.15 + (0.85 * (scale.newest - sample.versions[sample.places[place]])) / range);
}

function legendOf(mode, scale) {
  if (scale.newest === -Infinity) return "nothing was sampled";
  if ((mode === "advantage" || mode === "ratio") && !scale.trained) return `no ${mode}: not trained, or the run kept no record of it`;
  if (mode === "mask") return "blue: sampled by the policy; plain: prompt, tool results";
  if (mode === "advantage") return `green: above 0, red: below; full colour: ${number(scale.advantage, 3)}`;
  if (mode === "ratio") return `green: the trainer finds it likelier, red: less likely; full colour: ${number(scale.ratio, 3)} nats`;
  if (mode === "logprob") return `the redder, the less likely; full colour: ${number(-scale.logprob, 3)} nats`;
  return scale.oldest === scale.newest ? `all sampled by version ${scale.newest}` : `from version ${scale.newest} (pale) back to ${scale.oldest} (strong)`;
}

function recolour() {
  setTools();
  parts.tools.legend.textContent = state.scale ? legendOf(state.mode, state.scale) : "";
  for (const view of tokenViews) for (const token of view.box.children) paint(token, view.sample);
}

function paint(token, sample) {
  const place = sample.placeOf[token.dataset.at];
  if (place >= 0) token.style.background = tint(state.mode, sample, place, state.scale);
}

// Members are filled when they come into sight: a group may have very many tokens.
const inSight = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { inSight.unobserve(entry.target); entry.target.fill(); }
}, { rootMargin: "800px" });

async function tokenView(group, member, drawn) {
  const [samples, texts] = await Promise.all([samplesOf(group), once(`texts-${group.run}`, unpackJson)]);
  const own = samples.filter((one) => one.member === member);
  const views = own.map((sample, number) => sampleView(sample, texts, drawn, own.length > 1 ? `sample ${number + 1} of ${own.length}` : null));
  return el("div", {}, views.length ? views : el("p", { class: "dim" }, "no tokens"));
}

function sampleView(sample, texts, drawn, title) {
  const box = el("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens; arrow keys go through them" });
  const more = el("button", { hidden: true, onclick: () => add() }, "Show more tokens");
  const start = sample.places.length ? Math.max(0, sample.places[0] - BEFORE) : 0;
  const earlier = el("button", { hidden: start === 0, onclick: () => {
    box.prepend(...Array.from({ length: start }, (_, token) => tokenOf(sample, texts, token)));
    earlier.hidden = true;
  } }, `Show the ${plural(start, "token")} before`);
  let shown = start, at = null;
  const add = () => {
    const end = Math.min(shown + TOKENS_AT_ONCE, sample.ids.length), made = [];
    for (; shown < end; shown++) made.push(tokenOf(sample, texts, shown));
    box.append(...made);
    more.hidden = shown >= sample.ids.length;
  };
  const tell = (token, spoken) => {
    if (at) at.classList.remove("at");
    at = token;
    at.classList.add("at");
    parts.readout.hidden = false;
    parts.readout.textContent = tokenFacts(sample, texts, Number(at.dataset.at));
    if (spoken) say(parts.readout.textContent);
  };
  box.addEventListener("pointerover", (event) => { if (event.target.dataset.at) tell(event.target, false); });
  box.addEventListener("keydown", (event) => {
    const next = { ArrowRight: () => (at ? at.nextSibling : box.firstChild), ArrowLeft: () => at && at.previousSibling }[event.key];
    if (!next) return;
    event.preventDefault();
    const token = next();
    if (token) { tell(token, true); token.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  });
  const view = el("div", {}, title ? el("div", { class: "legend" }, title) : null, earlier, box, more);
  view.fill = add;
  drawn.push({ box, sample });
  inSight.observe(view);
  return view;
}

function tokenText(texts, id) {
  return id in texts ? texts[id] : `⟨${id}⟩`;
}

function tokenOf(sample, texts, token) {
  const text = tokenText(texts, sample.ids[token]);
  const made = el("span", { "data-at": token, class: sample.placeOf[token] < 0 ? null : "sampled" }, text.replace(/\n/g, "⏎\n") || "∅");
  paint(made, sample);
  return made;
}

function tokenFacts(sample, texts, token) {
  const place = sample.placeOf[token];
  const facts = [`position ${token}`, `token ${sample.ids[token]} ${JSON.stringify(tokenText(texts, sample.ids[token]))}`];
  if (place < 0) return [...facts, "observed"].join(" · ");
  facts.push(`sampled by version ${sample.versions[token]}`, `logprob ${number(sample.logprobs[place])}`);
  if (sample.advantages) {
    facts.push(`advantage ${number(sample.advantages[place])}`, `ratio ${number(Math.exp(sample.logRatios[place]), 6)}`);
  }
  return facts.join(" · ");
}
