// When trajectories were generated and scored, the trainer trained and weights were pushed, and who waited for whom.

const PARTS = {
  wait_rollouts: "waits for rollouts", train: "trains", weight_sync: "pushes weights", turns: "hands devices over",
  checkpoint: "writes a checkpoint", eval: "waits for an evaluation",
};
const STAGES = { generate: "waiting for the engine", environment: "in tools and environment", reward: "being scored" };
const OTHER = "start and end", LOAD_HEIGHT = 120, TOP = LOAD_HEIGHT + 24, BAR = 16, LABEL = 150;
const LANE_COLOURS = ["#8d8d99", "#3a7bd5", "#c7544a", "#7b9e3b", "#9a6dd7", "#e09f3e"];

function showTimeline(view) {
  RUNS.forEach((run, number) => {
    if (RUNS.length > 1) view.append(el("h2", {}, swatch(number), run.label));
    view.append(run.timeline ? timelineOf(run.timeline) : el("p", { class: "dim" }, "This run has no timeline."));
  });
}

function timelineOf(timeline) {
  const length = Math.max(timeline.length, 1e-6);
  const lanes = [...Object.keys(PARTS).filter((name) => timeline.events.some((event) => event[0] === name)), null];
  const laneOf = (name) => Math.max(lanes.indexOf(name), -1) >= 0 ? lanes.indexOf(name) : lanes.length - 1;
  const canvas = el("canvas", { tabindex: 0, role: "img",
    "aria-label": "The run over time. Arrow keys move from event to event, plus and minus zoom. The table below has the sums." });
  const readout = el("div", { class: "readout", });
  const firstStep = timeline.events.find((event) => event[1] > 0);
  let from = firstStep ? firstStep[2] : 0, to = length, at = timeline.events.indexOf(firstStep) - 1;
  // On a narrow screen names stand above the bars, not beside them.
  const narrow = () => canvas.clientWidth < 600;
  const label = () => (narrow() ? 0 : LABEL);
  const laneHeight = () => (narrow() ? BAR + 18 : BAR + 6);
  const x = (time) => label() + ((time - from) / (to - from)) * (canvas.clientWidth - label());
  const draw = () => drawTimeline(canvas, timeline,
    { x, from, to, length, lanes, laneOf, at, label: label(), laneHeight: laneHeight() });
  const zoom = (factor, middle = (from + to) / 2) => {
    const size = Math.min(length, Math.max((to - from) * factor, length / 1e5));
    from = Math.max(0, Math.min(length - size, middle - ((middle - from) * size) / (to - from)));
    to = from + size;
    draw();
  };
  const move = (share) => {
    const by = Math.max(-from, Math.min(length - to, (to - from) * share));
    from += by; to += by;
    draw();
  };
  const tell = (place) => {
    at = place;
    const event = timeline.events[at];
    readout.textContent = event ? described(event) : "";
    say(readout.textContent);
    if (event && (event[3] < from || event[2] > to)) { move((event[2] - from) / (to - from) - 0.3); }
    draw();
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") tell(Math.min(at + 1, timeline.events.length - 1));
    else if (event.key === "ArrowLeft") tell(Math.max(at - 1, 0));
    else if (event.key === "+" || event.key === "=") zoom(0.5);
    else if (event.key === "-") zoom(2);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const time = from + ((event.clientX - box.left - label()) / (box.width - label())) * (to - from);
    const lane = Math.floor((event.clientY - box.top - TOP) / laneHeight());
    const found = timeline.events.findIndex((one) => laneOf(one[0]) === lane && one[2] <= time && time <= one[3]);
    readout.textContent = found >= 0 ? described(timeline.events[found]) : loadAt(timeline, time, length);
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, from + ((event.clientX - box.left - label()) / (box.width - label())) * (to - from));
  }, { passive: false });
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const buttons = [["Zoom in", () => zoom(0.5)], ["Zoom out", () => zoom(2)], ["Earlier", () => move(-0.5)],
    ["Later", () => move(0.5)], ["Whole run", () => { from = 0; to = length; draw(); }]];
  return el("div", {}, el("div", { class: "row" }, buttons.map(([text, onclick]) => el("button", { onclick }, text)),
    Object.keys(timeline.load).map((name) => el("span", { class: "legend" },
      el("span", { class: "swatch", style: `background: ${stageColour(name)}` }), STAGES[name] || name))),
  canvas, readout, totals(timeline, length));
}

function stageColour(name) {
  return colour(name in STAGES ? `--stage-${name}` : "--stage-other");
}

function described(event) {
  const [name, step, start, end, why] = event;
  const where = step ? `step ${step}: ` : "";
  return `${where}${PARTS[name] || name}, ${seconds(end - start)}, from ${seconds(start)} on${why ? ` · ${why}` : ""}`;
}

function loadAt(timeline, time, length) {
  const names = Object.keys(timeline.load);
  if (!names.length || time < 0 || time > length) return "";
  const bin = Math.min(Math.floor((time / length) * timeline.load[names[0]].length), timeline.load[names[0]].length - 1);
  return `${seconds(time)}: trajectories ${names.map((n) => `${STAGES[n] || n} ${number(timeline.load[n][bin])}`).join(", ")}`;
}

function drawTimeline(canvas, timeline, view) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  if (!width) return;
  const height = TOP + view.lanes.length * view.laneHeight + 20;
  canvas.style.height = `${height}px`;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "11px system-ui, sans-serif";
  drawLoad(pen, timeline, view, width);
  const below = (lane) => TOP + (lane + 1) * view.laneHeight;
  view.lanes.forEach((name, lane) => {
    pen.fillStyle = colour("--line");
    pen.fillRect(0, below(lane) - 1, width, 1);
    pen.fillStyle = colour("--text");
    pen.fillText(PARTS[name] || OTHER, 6, below(lane) - (view.label ? 8 : BAR + 6));
  });
  const painted = view.lanes.map(() => -Infinity);
  timeline.events.forEach((event, place) => {
    if (event[3] < view.from || event[2] > view.to) return;
    const lane = view.laneOf(event[0]), top = below(lane) - BAR - 3;
    const left = Math.max(view.x(event[2]), view.label), right = Math.min(view.x(event[3]), width);
    if (right < painted[lane] + 0.5 && place !== view.at) return; // nothing of it would be seen
    painted[lane] = Math.max(right, left + 0.6);
    pen.fillStyle = LANE_COLOURS[lane % LANE_COLOURS.length];
    pen.fillRect(left, top, Math.max(right - left, 0.6), BAR);
    if (place === view.at) { pen.strokeStyle = colour("--text"); pen.strokeRect(left, top - 1, Math.max(right - left, 2), BAR + 2); }
  });
  pen.fillStyle = colour("--dim");
  for (const moment of timeline.resumed.filter((time) => view.from <= time && time <= view.to)) {
    for (let y = 16; y < height - 20; y += 8) pen.fillRect(view.x(moment), y, 1.5, 4);
    pen.fillText("resumed", view.x(moment) + 4, 12);
  }
  pen.fillText(seconds(view.from), view.label + 4, height - 6);
  const last = seconds(view.to);
  pen.fillText(last, width - pen.measureText(last).width - 6, height - 6);
}

function drawLoad(pen, timeline, view, width) {
  const names = Object.keys(timeline.load);
  if (!names.length) return;
  const bins = timeline.load[names[0]].length, sums = new Float64Array(bins);
  names.forEach((name) => timeline.load[name].forEach((value, bin) => { sums[bin] += value; }));
  const most = Math.max(...sums, 1), bases = new Float64Array(bins);
  const y = (value) => LOAD_HEIGHT + 14 - (value / most) * LOAD_HEIGHT;
  pen.save();
  pen.beginPath(); pen.rect(view.label, 0, width - view.label, LOAD_HEIGHT + 15); pen.clip();
  for (const name of names) {
    pen.fillStyle = stageColour(name);
    pen.beginPath();
    for (let bin = 0; bin < bins; bin++) {
      const left = view.x((bin / bins) * view.length), right = view.x(((bin + 1) / bins) * view.length);
      const base = bases[bin], top = base + timeline.load[name][bin];
      if (right >= view.label && left <= width && top > base) pen.rect(left, y(top), right - left + 0.3, y(base) - y(top));
      bases[bin] = top;
    }
    pen.fill();
  }
  pen.restore();
  pen.fillStyle = colour("--text");
  if (view.label) { pen.fillText("trajectories under way", 6, 24); pen.fillStyle = colour("--dim"); pen.fillText(`up to ${number(most, 3)}`, 6, 40); }
}

function totals(timeline, length) {
  const sums = new Map();
  for (const [name, , start, end] of timeline.events) {
    const [count, total, longest] = sums.get(name) || [0, 0, 0];
    sums.set(name, [count + 1, total + end - start, Math.max(longest, end - start)]);
  }
  const rows = [...sums].sort((a, b) => b[1][1] - a[1][1]);
  return el("details", {}, el("summary", {}, `Where the driver's ${seconds(length)} went`), el("div", { class: "scroll" },
    el("table", {}, el("thead", {}, el("tr", {}, ["part", "times", "together", "longest", "share of the run"].map((head, place) =>
      el("th", { class: place ? "number" : null, scope: "col" }, head)))),
    el("tbody", {}, rows.map(([name, [count, total, longest]]) => el("tr", {}, el("td", {}, PARTS[name] || name),
      [number(count), seconds(total), seconds(longest), `${((100 * total) / length).toFixed(1)} %`].map((text) =>
        el("td", { class: "number" }, text))))))));
}
