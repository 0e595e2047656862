// The curves of every metric that was logged, in the sections of the registry. Two runs share a chart.

const WIDTH = 320, HEIGHT = 110, BOTTOM = 14, MOST_POINTS = 600;

function showCurves(view) {
  const sections = new Map();
  RUNS.forEach((run, number) => {
    for (const curve of run.curves) {
      if (!sections.has(curve.section)) sections.set(curve.section, new Map());
      const charts = sections.get(curve.section);
      if (!charts.has(curve.name)) charts.set(curve.name, { ...curve, lines: [] });
      charts.get(curve.name).lines.push({ run: number, steps: curve.steps, values: curve.values });
    }
  });
  if (!sections.size) view.append(el("p", { class: "dim" }, "No step has been logged yet."));
  for (const [section, charts] of sections) {
    view.append(el("details", { open: true }, el("summary", {}, section),
      el("div", { class: "charts" }, [...charts.values()].map(chart))));
  }
}

function chart(curve) {
  const points = curve.lines.flatMap((line) => line.values.filter((value) => value !== null));
  const [low, high] = points.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  const first = Math.min(...curve.lines.map((line) => line.steps[0]));
  const last = Math.max(...curve.lines.map((line) => line.steps[line.steps.length - 1]));
  const x = (step) => (last === first ? WIDTH / 2 : ((step - first) / (last - first)) * WIDTH);
  const y = (value) => (high === low ? HEIGHT / 2 : 8 + (1 - (value - low) / (high - low)) * (HEIGHT - BOTTOM - 12));
  const value = el("div", { class: "value" });
  const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "axis", x1: 0, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }), cursor,
    ...curve.lines.flatMap((line) => drawn(line, x, y)));
  const steps = [...new Set(curve.lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  let at = null;
  const tell = (place) => {
    at = place === null ? null : Math.max(0, Math.min(steps.length - 1, place));
    const step = at === null ? null : steps[at];
    cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) { cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step)); }
    value.replaceChildren(...curve.lines.flatMap((line) => [swatch(line.run), `${reading(line, step)} `])
      .filter((part) => part !== null));
  };
  tell(null);
  const figure = el("figure", {
    tabindex: 0, title: curve.meaning,
    "aria-label": `${curve.name}, ${curve.unit}: ${curve.meaning} Arrow keys read single steps.`,
    onkeydown: (event) => {
      if (event.key === "ArrowLeft") tell((at === null ? steps.length : at) - 1);
      else if (event.key === "ArrowRight") tell((at === null ? -1 : at) + 1);
      else return;
      event.preventDefault();
      say(`${curve.name}, ${value.textContent}`);
    },
    onpointermove: (event) => {
      const box = picture.getBoundingClientRect();
      const step = first + ((event.clientX - box.left) / box.width) * (last - first);
      tell(nearest(steps, step));
    },
    onpointerleave: () => tell(null),
  }, el("figcaption", {}, el("span", { class: "name" }, curve.name), el("span", { class: "dim" }, curve.unit)),
  picture, el("div", { class: "row dim", style: "justify-content: space-between; margin: 0; font-size: 11px" },
    el("span", {}, `step ${first}`), el("span", {}, points.length ? `${number(low)} to ${number(high)}` : "not finite"),
    el("span", {}, `step ${last}`)), value);
  return figure;
}

function reading(line, step) {
  const told = (place) => (line.values[place] === null ? "not finite" : number(line.values[place]));
  if (step === null) return `last ${told(line.values.length - 1)}`;
  const place = line.steps.indexOf(step);
  return place < 0 ? "–" : `step ${step}: ${told(place)}`;
}

function nearest(sorted, value) {
  let best = 0;
  sorted.forEach((one, place) => { if (Math.abs(one - value) < Math.abs(sorted[best] - value)) best = place; });
  return best;
}

function drawn(line, x, y) {
  const style = `stroke: var(--run-${line.run}); fill: none`;
  const stroke = { style, "stroke-width": 1.6, "vector-effect": "non-scaling-stroke" };
  const parts = [];
  let open = [];
  const end = () => {
    if (open.length > 1) parts.push(svg("polyline", { points: open.join(" "), ...stroke }));
    else if (open.length) {
      const [px, py] = open[0].split(",");
      parts.push(svg("line", { x1: px - 1.5, x2: Number(px) + 1.5, y1: py, y2: py, ...stroke, "stroke-width": 4 }));
    }
    open = [];
  };
  for (const [step, value] of thinned(line)) {
    if (value === null) end();
    else open.push(`${x(step).toFixed(1)},${y(value).toFixed(1)}`);
  }
  end();
  return parts;
}

// Of very many points those that are extreme in their part of the line, so that no peak is lost.
function thinned(line) {
  const every = line.steps.map((step, place) => [step, line.values[place]]);
  if (every.length <= MOST_POINTS) return every;
  const size = Math.ceil((2 * every.length) / MOST_POINTS), kept = [];
  for (let i = 0; i < every.length; i += size) {
    const part = every.slice(i, i + size).filter(([, value]) => value !== null);
    if (!part.length) { kept.push([every[i][0], null]); continue; }
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a)), high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low[0] < high[0] ? [low, high] : low[0] > high[0] ? [high, low] : [low]));
  }
  return kept;
}
