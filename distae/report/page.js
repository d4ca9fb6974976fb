"use strict";
// Draws the charts of a report from the JSON beside them. No library, no request; colours are classes of page.css.
(() => {
  const WIDTH = 460, HEIGHT = 230, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 32, COLOURS = 10, SHOWN = 8;
  const MARKERS = ["M-3.2,0a3.2,3.2 0 1 0 6.4,0a3.2,3.2 0 1 0 -6.4,0", "M-3,-3h6v6h-6z", "M0,-4L4,3H-4z", "M0,-4.2L4.2,0L0,4.2L-4.2,0z"];

  function make(name, attributes, parent, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent?.append(element);
    return element;
  }

  function html(name, attributes, parent, text) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    parent?.append(element);
    return element;
  }

  function folded(summary, parent) {
    const details = html("details", {}, parent);
    html("summary", {}, details, summary);
    return html("div", { class: "controls" }, details);
  }

  function shown(value) {
    const size = Math.abs(value);
    if (value === null || value === undefined) return "-";
    if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(5)));
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
    return found;
  }

  function logTicks(low, high) {
    const found = [], decades = Math.log10(high / low), parts = decades > 2.5 ? [1] : decades > 1 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const part of parts) found.push(part * 10 ** power);
    const inside = found.filter((t) => t >= low && t <= high);
    const every = Math.ceil(inside.length / 7);
    return inside.length > 1 ? inside.filter((_, i) => i % every === 0) : ticks(low, high, 4);
  }

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.data = JSON.parse(figure.querySelector("script").textContent);
      this.controls = html("div", { class: "controls" });
      this.plot = html("div", { class: "plot", tabindex: "0", role: "img" });
      this.output = html("output", { "aria-live": "polite" });
      figure.querySelector("figcaption").after(this.controls, this.plot, this.output);
      this.range = null;
      this.hidden = new Set();
      this.prepare();
      this.plot.setAttribute("aria-label", `${this.about()} Arrow keys read values, plus and minus zoom, 0 shows all.`);
      this.listen();
      this.draw();
    }

    button(text, pressed, act, box = this.controls) {
      const button = html("button", { type: "button", "aria-label": `${text}: ${this.data.title}` }, box, text);
      if (pressed !== null) button.setAttribute("aria-pressed", String(pressed));
      button.addEventListener("click", () => act(button));
      return button;
    }

    key(id, text, draw, box) {
      const button = this.button(text, true, () => {
        this.hidden.has(id) ? this.hidden.delete(id) : this.hidden.add(id);
        button.setAttribute("aria-pressed", String(!this.hidden.has(id)));
        this.draw();
      }, box);
      button.className = "key";
      const icon = make("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" });
      button.prepend(icon);
      draw(icon);
    }

    zoomable() {
      this.reset = this.button("Show all", null, () => this.zoom(null));
    }

    listen() {
      const at = (event) => {
        const box = this.svg.getBoundingClientRect();
        return [((event.clientX - box.left) / box.width) * WIDTH, ((event.clientY - box.top) / box.height) * HEIGHT];
      };
      this.plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        this.from = at(event);
        this.plot.setPointerCapture(event.pointerId);
      });
      this.plot.addEventListener("pointermove", (event) => {
        const here = at(event);
        if (this.from && Math.abs(here[0] - this.from[0]) > 6) this.band(this.from, here);
        else this.point(...here);
      });
      this.plot.addEventListener("pointerup", (event) => {
        const from = this.from, to = at(event);
        this.from = null;
        if (from && Math.abs(to[0] - from[0]) > 6) this.zoomTo(from, to);
        else {
          this.point(...to);
          if (from) this.pick?.(...to);
        }
      });
      this.plot.addEventListener("pointercancel", () => { this.from = null; this.draw(); });
      this.plot.addEventListener("pointerleave", () => { if (!this.from) this.leave(); });
      this.plot.addEventListener("blur", () => this.leave());
      this.plot.addEventListener("dblclick", () => this.zoom(null));
      this.plot.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const act = {
          ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), Home: () => this.step(-Infinity), End: () => this.step(Infinity),
          "+": () => this.closer(0.5), "=": () => this.closer(0.5), "-": () => this.closer(2), 0: () => this.zoom(null),
          Escape: () => this.zoom(null), Enter: () => this.pick?.(),
        }[event.key];
        if (act) { event.preventDefault(); act(); }
      });
    }

    zoom(range) {
      this.range = range;
      this.draw();
    }

    leave() {
      this.hover?.replaceChildren();
      this.output.textContent = "";
    }

    frame(xs, ys, [name, upward], log) {
      this.svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
      this.x = (v) => LEFT + ((v - xs[0]) / (xs[1] - xs[0])) * (WIDTH - LEFT - RIGHT);
      this.back = (p) => xs[0] + ((p - LEFT) / (WIDTH - LEFT - RIGHT)) * (xs[1] - xs[0]);
      const on = log ? Math.log : (v) => v, [low, high] = ys.map(on);
      this.y = (v) => HEIGHT - BOTTOM - ((on(v) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
      this.upward = (p) => ys[0] + ((HEIGHT - BOTTOM - p) / (HEIGHT - TOP - BOTTOM)) * (ys[1] - ys[0]);
      for (const t of ticks(...xs, 5)) {
        make("text", { x: this.x(t), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" }, this.svg, shown(t));
      }
      for (const t of log ? logTicks(...ys) : ticks(...ys, 5)) {
        make("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: this.y(t), y2: this.y(t) }, this.svg);
        make("text", { x: LEFT - 5, y: this.y(t) + 4, "text-anchor": "end" }, this.svg, shown(t));
      }
      make("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, this.svg, name);
      if (upward) make("text", { transform: `translate(11 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, this.svg, upward);
    }

    finish() {
      this.hover = make("g", {}, this.svg);
      this.plot.replaceChildren(this.svg);
      this.reset.disabled = this.range === null;
    }
  }

  class Lines extends Chart {
    prepare() {
      const { curves, axes } = this.data;
      this.runs = [...new Set(curves.map((c) => c.run))];
      this.kinds = [...new Set(curves.map((c) => c.kind))];
      this.axis = 0;
      this.log = false;
      const positive = curves.some((c) => c.points.some((p) => p.at(-1) > 0));
      const log = this.button("Log scale", false, (b) => { this.log = !this.log; b.setAttribute("aria-pressed", String(this.log)); this.draw(); });
      log.disabled = !positive;
      if (axes.length > 1)
        this.button(`By ${axes[1]}`, false, (b) => { this.axis = 1 - this.axis; b.setAttribute("aria-pressed", String(this.axis === 1)); this.zoom(null); });
      this.zoomable();
      if (this.kinds.length > 1)
        for (const kind of this.kinds) this.key(`kind ${kind}`, kind, (icon) => this.sample(icon, kind, this.colour(this.runs[0], kind)));
      if (this.runs.length > 1) {
        const box = this.runs.length > SHOWN ? folded(`${this.runs.length} runs`, this.controls) : this.controls;
        for (const run of this.runs) this.key(`run ${run}`, run, (icon) => this.sample(icon, "val", this.colour(run, "")), box);
      }
    }

    about() {
      const last = this.data.curves.slice(0, 6).map((c) => `${c.run} ${c.kind} ends at ${shown(c.points.at(-1).at(-1))}`);
      return `Curves of ${this.data.title}: ${last.join(", ")}.`;
    }

    colour(run, kind) {
      const of = this.runs.length > 1 ? this.runs.indexOf(run) : ["val", "train", "test"].indexOf(kind);
      return Math.max(0, of) % COLOURS;
    }

    sample(icon, kind, colour) {
      if (kind === "test") make("path", { d: MARKERS[0], transform: "translate(14 6)", class: `f${colour}` }, icon);
      else make("path", { d: "M0,6H28", class: `${this.style(kind)} s${colour}` }, icon);
    }

    style(kind) {
      return kind === "train" && this.kinds.length > 1 ? "curve train" : "curve";
    }

    visible() {
      return this.data.curves.filter((c) => !this.hidden.has(`kind ${c.kind}`) && !this.hidden.has(`run ${c.run}`));
    }

    draw() {
      const curves = this.visible(), axis = this.axis, all = curves.flatMap((c) => c.points.map((p) => p[axis]));
      const low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
      this.whole = low < high ? [low, high] : [low - 0.5, low + 0.5];
      if (!all.length) this.whole = [0, 1];
      const xs = this.range ?? this.whole;
      let values = curves.flatMap((c) => inside(c.points, axis, xs, this.data.axes.length)).filter((v) => v !== null && (!this.log || v > 0));
      let ys = [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
      if (!values.length) ys = this.log ? [0.1, 1] : [0, 1];
      if (ys[0] === ys[1]) ys = this.log ? [ys[0] / 2, ys[1] * 2] : [ys[0] - (Math.abs(ys[0]) || 1) / 2, ys[1] + (Math.abs(ys[1]) || 1) / 2];
      const margin = this.log ? (ys[1] / ys[0]) ** 0.04 : (ys[1] - ys[0]) * 0.04;
      ys = this.log ? [ys[0] / margin, ys[1] * margin] : [ys[0] - margin, ys[1] + margin];
      this.frame(xs, ys, [this.data.axes[axis]], this.log);
      this.marks(xs);
      for (const curve of curves) this.curve(curve, xs);
      this.finish();
    }

    marks([low, high]) {
      for (const mark of this.data.marks) {
        const at = this.data.axes[this.axis] === "step" ? mark.step : mark.time;
        if (at < low || at > high || at === null) continue;
        const x = this.x(at), bottom = HEIGHT - BOTTOM;
        const shape = mark.kind === "start"
          ? make("line", { class: "start", x1: x, x2: x, y1: TOP, y2: bottom }, this.svg)
          : make("path", { class: mark.kind, d: MARKERS[mark.kind === "best" ? 3 : 2], transform: `translate(${x} ${bottom})` }, this.svg);
        make("title", {}, shape, mark.text);
      }
    }

    curve(curve, [low, high]) {
      const colour = this.colour(curve.run, curve.kind), axis = this.axis, y = (p) => p.at(-1);
      const drawn = curve.points.filter((p) => y(p) !== null && (!this.log || y(p) > 0));
      const from = drawn.findIndex((p) => p[axis] >= low), to = drawn.findLastIndex((p) => p[axis] <= high);
      const part = from < 0 || to < 0 ? [] : drawn.slice(Math.max(0, from - 1), to + 2);
      if (curve.kind === "test" || part.length < 2) {
        for (const p of drawn.filter((p) => p[axis] >= low && p[axis] <= high))
          make("path", { class: `point f${colour}`, d: MARKERS[0], transform: `translate(${this.x(p[axis])} ${this.y(y(p))})` }, this.svg);
        return;
      }
      if (part[0].length > this.data.axes.length + 1) this.band_of(part, colour);
      const clipped = part.map((p, i) => `${i ? "L" : "M"}${clamp(this.x(p[axis])).toFixed(1)},${this.y(this.at(part, i, low, high)).toFixed(1)}`);
      make("path", { class: `${this.style(curve.kind)} s${colour}`, d: clipped.join("") }, this.svg);
    }

    // One deviation to either side of a mean.
    band_of(part, colour) {
      const inside = (y) => Math.max(TOP, Math.min(HEIGHT - BOTTOM, y)).toFixed(1);
      const edge = (i) => part.map((p) => `${clamp(this.x(p[this.axis])).toFixed(1)},${inside(this.log && p.at(i) <= 0 ? HEIGHT : this.y(p.at(i)))}`);
      make("path", { class: `band f${colour}`, d: `M${[...edge(-2), ...edge(-3).reverse()].join("L")}Z` }, this.svg);
    }

    // A curve ends at the edges of a zoomed chart: the value there is between the points on either side.
    at(part, i, low, high) {
      const p = part[i], x = p[this.axis], edge = x < low ? low : x > high ? high : null;
      const other = part[x < low ? i + 1 : i - 1];
      if (edge === null || !other || other[this.axis] === x) return p.at(-1);
      return p.at(-1) + ((edge - x) / (other[this.axis] - x)) * (other.at(-1) - p.at(-1));
    }

    point(px, py) {
      this.read(this.back(px), py);
    }

    stops() {
      const [low, high] = this.range ?? this.whole;
      return [...new Set(this.visible().flatMap((c) => c.points.map((p) => p[this.axis])))].filter((x) => x >= low && x <= high).sort((a, b) => a - b);
    }

    step(by) {
      const stops = this.stops(), here = this.here === undefined ? (by > 0 ? -1 : stops.length) : stops.findLastIndex((x) => x <= this.here);
      if (stops.length) this.read(stops[Math.max(0, Math.min(stops.length - 1, here + by))]);
    }

    closer(factor) {
      const [low, high] = this.range ?? this.whole, middle = this.here >= low && this.here <= high ? this.here : (low + high) / 2;
      const half = ((high - low) / 2) * factor, [first, last] = this.whole;
      const range = [Math.max(first, middle - half), Math.min(last, middle + half)];
      this.zoom(range[0] <= first && range[1] >= last ? null : range);
      if (this.here !== undefined) this.read(this.here);
    }

    // `py`: the pointer's height, to which the curves that are named first are the nearest.
    read(wanted, py) {
      const [low, high] = this.range ?? this.whole, x = Math.max(low, Math.min(high, wanted));
      const found = this.visible().map((c) => [c, nearest(c.points, this.axis, x)]).filter(([, p]) => p && p[this.axis] >= low && p[this.axis] <= high);
      if (!found.length) return;
      const away = ([, p]) => Math.abs(this.y(p.at(-1)) - py) || 0;
      if (py !== undefined && found.length > SHOWN) found.sort((a, b) => away(a) - away(b));
      const at = found.map(([, p]) => p[this.axis]).reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
      this.here = at;
      this.hover.replaceChildren();
      make("line", { class: "cursor", x1: this.x(at), x2: this.x(at), y1: TOP, y2: HEIGHT - BOTTOM }, this.hover);
      const texts = found.map(([c, p]) => {
        const value = p.at(-1);
        if (value !== null && (!this.log || value > 0))
          make("path", { class: `f${this.colour(c.run, c.kind)}`, d: MARKERS[0], transform: `translate(${this.x(p[this.axis])} ${this.y(value)})` }, this.hover);
        const spread = p.length > this.data.axes.length + 1 ? ` ± ${shown(p.at(-2) - value)}` : "";
        return `${this.runs.length > 1 ? `${c.run} ` : ""}${c.kind} ${shown(value)}${spread}`;
      });
      const more = texts.length > SHOWN ? `, and ${texts.length - SHOWN} more` : "";
      this.output.textContent = `${this.data.axes[this.axis]} ${shown(at)}: ${texts.slice(0, SHOWN).join(", ")}${more}`;
    }

    band(from, to) {
      const [a, b] = [from[0], to[0]].map(clamp).sort((p, q) => p - q);
      this.hover.replaceChildren();
      make("rect", { class: "drag", x: a, width: b - a, y: TOP, height: HEIGHT - TOP - BOTTOM }, this.hover);
    }

    zoomTo(from, to) {
      const [a, b] = [from[0], to[0]].map((p) => this.back(clamp(p))).sort((p, q) => p - q);
      this.zoom(b > a ? [a, b] : null);
    }
  }

  class Points extends Chart {
    prepare() {
      const { labels } = this.data;
      this.figure.addEventListener("mark", (event) => { this.marked = event.detail; this.mark(); });
      this.zoomable();
      if (labels.length > 1)
        labels.forEach((label, i) => this.key(i, label, (icon) => make("path", { class: `f${i % COLOURS}`, d: this.marker(i), transform: "translate(14 6)" }, icon)));
    }

    marker(i) {
      return MARKERS[(i % MARKERS.length + Math.floor(i / COLOURS)) % MARKERS.length];
    }

    about() {
      return this.data.text;
    }

    draw() {
      const points = this.data.points.filter((p) => !this.hidden.has(p[2]));
      const bounds = (i) => {
        const values = this.data.points.map((p) => p[i]), low = Math.min(...values), high = Math.max(...values), margin = (high - low) * 0.03 || 0.5;
        return [low - margin, high + margin];
      };
      this.whole = [bounds(0), bounds(1)];
      const [xs, ys] = this.range ?? this.whole;
      this.frame(xs, ys, this.data.axes, false);
      this.seen = points.filter((p) => p[0] >= xs[0] && p[0] <= xs[1] && p[1] >= ys[0] && p[1] <= ys[1]);
      for (const p of this.seen)
        make("path", { class: `f${p[2] % COLOURS}`, d: this.marker(p[2]), transform: `translate(${this.x(p[0]).toFixed(1)} ${this.y(p[1]).toFixed(1)}) scale(0.75)`, "fill-opacity": 0.75 }, this.svg);
      this.finish();
      this.spot = make("g", {}, this.svg);
      this.mark();
    }

    // A cross at the place that an event `mark` on the figure gave.
    mark() {
      this.spot.replaceChildren();
      if (this.marked) make("path", { class: "spot", d: "M-7,0H7M0,-7V7", transform: `translate(${this.marked.map((v, i) => (i ? this.y(v) : this.x(v)).toFixed(1))})` }, this.spot);
    }

    // An event `pick` on the figure: where it was clicked, and the point there, or the point that is read by keys.
    pick(px, py) {
      const point = this.here ?? null;
      if (px === undefined && !point) return;
      this.figure.dispatchEvent(new CustomEvent("pick", { detail: { at: px === undefined ? point.slice(0, 2) : [this.back(px), this.upward(py)], point } }));
    }

    point(px, py) {
      const squared = (p) => (this.x(p[0]) - px) ** 2 + (this.y(p[1]) - py) ** 2;
      const found = this.seen.reduce((a, b) => (a && squared(a) <= squared(b) ? a : b), null);
      this.here = null;
      if (found && squared(found) < 400) this.read(found);
      else this.leave();
    }

    step(by) {
      const ordered = [...this.seen].sort((a, b) => a[0] - b[0]);
      const here = this.here ? ordered.indexOf(this.here) : by > 0 ? -1 : ordered.length;
      if (ordered.length) this.read(ordered[Math.max(0, Math.min(ordered.length - 1, here + by))]);
    }

    closer(factor) {
      const middle = this.here, range = this.range ?? this.whole;
      const next = range.map(([low, high], i) => {
        const at = middle ? middle[i] : (low + high) / 2, half = ((high - low) / 2) * factor;
        return [Math.max(this.whole[i][0], at - half), Math.min(this.whole[i][1], at + half)];
      });
      this.zoom(next.every((r, i) => r[0] === this.whole[i][0] && r[1] === this.whole[i][1]) ? null : next);
    }

    read(p) {
      this.here = p;
      this.hover.replaceChildren();
      make("circle", { class: "cursor", fill: "none", r: 6, cx: this.x(p[0]), cy: this.y(p[1]) }, this.hover);
      const label = this.data.labels.length > 1 ? `label ${this.data.labels[p[2]]}, ` : "";
      this.output.textContent = `sample ${p[3]}: ${label}at ${shown(p[0])}, ${shown(p[1])}`;
    }

    band(from, to) {
      const [x, y] = [0, 1].map((i) => [from[i], to[i]].sort((p, q) => p - q));
      this.hover.replaceChildren();
      make("rect", { class: "drag", x: x[0], width: x[1] - x[0], y: y[0], height: y[1] - y[0] }, this.hover);
    }

    zoomTo(from, to) {
      const ordered = (values) => values.sort((p, q) => p - q);
      const xs = ordered([this.back(from[0]), this.back(to[0])]), ys = ordered([this.upward(from[1]), this.upward(to[1])]);
      this.zoom(xs[0] < xs[1] && ys[0] < ys[1] ? [xs, ys] : null);
    }
  }

  const clamp = (p) => Math.max(LEFT, Math.min(WIDTH - RIGHT, p));
  const inside = (points, axis, [low, high], from) => points.filter((p) => p[axis] >= low && p[axis] <= high).flatMap((p) => p.slice(from));
  const nearest = (points, axis, x) => points.reduce((a, b) => (a && Math.abs(a[axis] - x) <= Math.abs(b[axis] - x) ? a : b), null);

  for (const figure of document.querySelectorAll(".chart")) new { lines: Lines, points: Points }[figure.dataset.kind](figure);

  const seconds = Number(document.body.dataset.refresh);
  if (seconds) {
    const line = html("p", {}, document.querySelector("header"), `Loaded again every ${seconds} s while the run continues. `);
    const button = html("button", { type: "button", "aria-pressed": "false" }, line, "Pause");
    button.addEventListener("click", () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true")));
    setInterval(() => { if (button.getAttribute("aria-pressed") !== "true") location.reload(); }, 1000 * seconds);
  }
})();
