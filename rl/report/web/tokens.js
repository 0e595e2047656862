// The tokens of a trajectory as the model saw them, coloured by what the run knows of each.

const COLOURS = {
  mask: "what the policy sampled", advantage: "advantage", ratio: "ratio of trainer to sampler", version: "policy version",
  logprob: "log-probability",
};
const TOKENS_AT_ONCE = 4000;
const BEFORE = 40; // tokens that are shown before the first sampled one; those before them are folded

// One entry a sample: its tokens and, for each sampled one, the numbers that are known.
async function samplesOf(group) {
  const packed = await once(`tokens-${group.run}-${group.number}`, unpackArrays);
  let token = 0, sampled = 0, trained = 0;
  return packed.about.samples.map(({ member, length, trained: count }) => {
    const versions = packed.versions.subarray(token, token + length);
    const places = Int32Array.from([...versions.keys()].filter((place) => versions[place] >= 0));
    const part = {
      member, versions, places, ids: packed.ids.subarray(token, token + length),
      logprobs: packed.logprobs.subarray(sampled, sampled + places.length),
      advantages: count ? packed.advantages.subarray(trained, trained + count) : null,
      logRatios: count ? packed.log_ratios.subarray(trained, trained + count) : null,
    };
    token += length; sampled += places.length; trained += count;
    return part;
  });
}

// The largest numbers of a group, which full colour stands for.
function scaleOf(samples) {
  const largest = (name) => Math.max(1e-9, ...samples.map((one) => (one[name] || []).reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
  const versions = samples.flatMap((one) => [...new Set(one.versions)]).filter((version) => version >= 0);
  return { advantage: largest("advantages"), ratio: largest("logRatios"), logprob: Math.min(largest("logprobs"), 8),
    oldest: Math.min(...versions), newest: Math.max(...versions) };
}

function tint(mode, sample, place, scale) {
  const rgba = (name, share) => `rgba(var(--tint-${name}), ${(0.08 + 0.62 * Math.min(1, share)).toFixed(3)})`;
  const signed = (value, most) => value === undefined || value === 0 ? null : rgba(value > 0 ? "up" : "down", Math.abs(value) / most);
  if (mode === "mask") return rgba("sampled", 0.2);
  if (mode === "advantage") return sample.advantages && signed(sample.advantages[place], scale.advantage);
  if (mode === "ratio") return sample.logRatios && signed(sample.logRatios[place], scale.ratio);
  if (mode === "logprob") return rgba("down", -sample.logprobs[place] / scale.logprob);
  const range = scale.newest - scale.oldest || 1;
  return rgba("age", 0.15 + (0.85 * (scale.newest - sample.versions[sample.places[place]])) / range);
}

function legendOf(mode, scale) {
  if (mode === "mask") return "blue: sampled by the policy; plain: prompt, tool results";
  if (mode === "advantage") return `green: above 0, red: below; full colour: ${number(scale.advantage, 3)}`;
  if (mode === "ratio") return `green: the trainer finds it likelier, red: less likely; full colour: a factor of ${number(Math.exp(scale.ratio), 6)}`;
  if (mode === "logprob") return `the redder, the less likely; full colour: ${number(-scale.logprob, 3)} nats`;
  return scale.oldest === scale.newest ? `all sampled by version ${scale.newest}` : `from version ${scale.newest} (pale) back to ${scale.oldest} (strong)`;
}

async function tokenView(group, member, mode) {
  const samples = await samplesOf(group);
  const texts = await once(`texts-${group.run}`, unpackJson);
  const scale = scaleOf(samples);
  const parts = samples.filter((one) => one.member === member);
  const readout = el("div", { class: "sticky", "aria-live": "polite" });
  const views = parts.map((sample, number) => sampleView(sample, texts, mode, scale, readout,
    parts.length > 1 ? `sample ${number + 1} of ${parts.length}` : null));
  const missing = (mode === "advantage" || mode === "ratio") && !parts.some((sample) => sample.advantages);
  return el("div", {}, el("div", { class: "legend" },
    missing ? `no ${mode}: not trained, or the run kept no record of it` : legendOf(mode, scale)),
    views.length ? views : el("p", { class: "dim" }, "no tokens"), readout);
}

function sampleView(sample, texts, mode, scale, readout, title) {
  const placeOf = new Int32Array(sample.ids.length).fill(-1);
  sample.places.forEach((token, place) => { placeOf[token] = place; });
  const box = el("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "Tokens; arrow keys go through them" });
  const more = el("button", { onclick: () => add() }, "Show more tokens");
  const start = sample.places.length ? Math.max(0, sample.places[0] - BEFORE) : 0;
  const earlier = el("button", { hidden: start === 0, onclick: () => {
    box.prepend(...Array.from({ length: start }, (_, token) => tokenOf(sample, texts, token, -1, mode, scale)));
    earlier.hidden = true;
  } }, `Show the ${plural(start, "token")} before`);
  let shown = start, at = null;
  const add = () => {
    const end = Math.min(shown + TOKENS_AT_ONCE, sample.ids.length), made = [];
    for (; shown < end; shown++) made.push(tokenOf(sample, texts, shown, placeOf[shown], mode, scale));
    box.append(...made);
    more.hidden = shown >= sample.ids.length;
  };
  const tell = (token) => {
    if (at) at.classList.remove("at");
    at = token;
    if (!at) return;
    at.classList.add("at");
    readout.textContent = tokenFacts(sample, texts, Number(at.dataset.at), placeOf[at.dataset.at]);
  };
  box.addEventListener("pointerover", (event) => { if (event.target.dataset.at) tell(event.target); });
  box.addEventListener("keydown", (event) => {
    const next = { ArrowRight: () => (at ? at.nextSibling : box.firstChild), ArrowLeft: () => at && at.previousSibling }[event.key];
    if (!next) return;
    event.preventDefault();
    const token = next();
    if (token) { tell(token); token.scrollIntoView({ block: "nearest", inline: "nearest" }); }
  });
  add();
  return el("div", {}, title ? el("div", { class: "legend" }, title) : null, earlier, box, more);
}

function tokenText(texts, id) {
  return id in texts ? texts[id] : `⟨${id}⟩`;
}

function tokenOf(sample, texts, token, place, mode, scale) {
  const text = tokenText(texts, sample.ids[token]);
  const back = place < 0 ? null : tint(mode, sample, place, scale);
  return el("span", { "data-at": token, class: place < 0 ? null : "sampled", style: back && `background: ${back}` },
    text.replace(/\n/g, "⏎\n") || "∅");
}

function tokenFacts(sample, texts, token, place) {
  const facts = [`position ${token}`, `token ${sample.ids[token]} ${JSON.stringify(tokenText(texts, sample.ids[token]))}`];
  if (place < 0) return [...facts, "observed"].join(" · ");
  facts.push(`sampled by version ${sample.versions[token]}`, `logprob ${number(sample.logprobs[place])}`);
  if (sample.advantages) {
    facts.push(`advantage ${number(sample.advantages[place])}`, `ratio ${number(Math.exp(sample.logRatios[place]), 6)}`);
  }
  return facts.join(" · ");
}
