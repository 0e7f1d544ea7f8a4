"use strict";

/* Lines over the last five minutes, as SVG: sharp on every screen, and coloured by the style sheet.

   All charts share one time axis and one cursor. Lines differ in their dashes as well as in colour, and the figures that
   the cursor points at stand as text above them. */

const SPAN = 300; // seconds shown
const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

/* The smallest of 1, 2, 4, 6, 8 times a power of ten that is no less: its half is a figure as short. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 2, 4, 6, 8]) if (factor * power >= value * 0.9999) return factor * power;
  return 10 * power;
}

/* What the daemon has told of the past, in columns. An event brings what is new; it may bring what is known, too. */
class Past {
  constructor() {
    this.clear();
  }

  clear() {
    this.columns = { at: [] };
    this.step = 1;
  }

  add(news) {
    if (!news || !Array.isArray(news.at) || !news.at.length) return;
    this.step = news.step || this.step;
    const at = this.columns.at;
    let keep = at.length;
    while (keep && at[keep - 1] >= news.at[0]) keep -= 1;
    let drop = 0;
    while (drop < keep && at[drop] < news.at[news.at.length - 1] - SPAN) drop += 1;
    for (const key of new Set([...Object.keys(this.columns), ...Object.keys(news)])) {
      if (key === "step") continue;
      const before = this.columns[key] || new Array(at.length).fill(null);
      this.columns[key] = before.slice(drop, keep).concat(news[key] || new Array(news.at.length).fill(null));
    }
  }

  get at() {
    return this.columns.at;
  }

  column(key) {
    return this.columns[key] || [];
  }
}

class Chart {
  /* lines: [{key, label, kind}], kind: a class of the style sheet. format: of a value; axis: of one beside the axis, where
     room is short. least: the smallest top of the axis; most: its largest. */
  constructor({ title, note = "", lines, format, axis = format, least, most = Infinity }) {
    Object.assign(this, { title, lines, format, axis, least, most });
    this.root = make("figure", "chart");
    const caption = make("figcaption");
    caption.append(make("h3", "", title), make("span", "note", note));
    this.legend = make("dl", "legend");
    this.figures = lines.map((line) => {
      const term = make("dt");
      const sample = shape("svg", { class: `sample ${line.kind}`, viewBox: "0 0 18 6", "aria-hidden": "true" });
      sample.append(shape("path", { class: "line", d: "M1 3H17" }));
      term.append(sample, line.label);
      const figure = make("dd", "", DASH);
      const pair = make("div");
      pair.append(term, figure);
      this.legend.append(pair);
      return figure;
    });
    this.svg = shape("svg", { class: "plot", role: "img", tabindex: "0" });
    this.root.append(caption, this.legend, this.svg);
    this.width = 0;
    this.height = 0;
    this.cursor = null;
    this.history = new Past();
    this.onCursor = () => {};
    this.listen();
  }

  listen() {
    new ResizeObserver(([entry]) => {
      this.width = Math.round(entry.contentRect.width);
      this.height = Math.round(entry.contentRect.height);
      this.draw();
    }).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(this.timeAt(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const at = this.history.at;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -SPAN, End: SPAN };
    if (!at.length || !(event.key in steps)) {
      if (event.key === "Escape") this.point(null);
      return;
    }
    event.preventDefault();
    const place = this.cursor === null ? at.length : this.nearest(this.cursor);
    this.point(at[Math.min(at.length - 1, Math.max(0, place + steps[event.key]))]);
  }

  point(time) {
    this.onCursor(time);
  }

  show(history, now) {
    this.history = history;
    this.now = now;
    this.draw();
  }

  setCursor(time) {
    this.cursor = time;
    this.draw();
  }

  // The axes: time to the right, with room for the figures of the other axis at its left.

  get left() {
    return 56;
  }

  get bottom() {
    return this.height - 16;
  }

  x(time) {
    return this.left + ((time - this.now + SPAN) / SPAN) * (this.width - this.left - 4);
  }

  y(value, top) {
    return this.bottom - (Math.min(value, top) / top) * (this.bottom - 6);
  }

  timeAt(x) {
    return this.now - SPAN + ((x - this.left) / (this.width - this.left - 4)) * SPAN;
  }

  nearest(time) {
    const at = this.history.at;
    let best = -1;
    for (let place = 0; place < at.length; place += 1) {
      if (best < 0 || Math.abs(at[place] - time) < Math.abs(at[best] - time)) best = place;
    }
    return best;
  }

  draw() {
    this.showFigures();
    if (!this.width || !this.now || document.hidden) return;
    const columns = this.lines.map((line) => this.history.column(line.key));
    let most = 0;
    for (const column of columns) for (const value of column) if (known(value) && value > most) most = value;
    const top = Math.min(this.most, Math.max(this.least, most ? roundUp(most * 1.04) : 0));
    const parts = this.axes(top);
    this.lines.forEach((line, place) => parts.push(...this.line(line, columns[place], top)));
    if (most === 0 && !columns.some((column) => column.some(known))) {
      parts.push(shape("text", { class: "empty", x: (this.left + this.width) / 2, y: this.bottom / 2 + 6 }, "nothing measured yet"));
    }
    if (this.cursor !== null && this.cursor >= this.now - SPAN && this.cursor <= this.now) {
      const x = this.x(this.cursor).toFixed(1);
      parts.push(shape("path", { class: "cursor", d: `M${x} 4V${this.bottom}` }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    this.svg.replaceChildren(...parts);
    mark(this.svg, "aria-label", this.summary(most));
  }

  axes(top) {
    const parts = [];
    for (const part of [0, 0.5, 1]) {
      const y = Math.round(this.y(top * part, top)) + 0.5;
      parts.push(shape("path", { class: part ? "grid" : "base", d: `M${this.left} ${y}H${this.width - 4}` }));
      parts.push(shape("text", { class: "tick y", x: this.left - 6, y: y + 3.5 }, this.axis(top * part)));
    }
    for (let minutes = 0; minutes <= 5; minutes += 1) {
      const x = Math.round(this.x(this.now - minutes * 60)) + (minutes ? 0.5 : -0.5);
      parts.push(shape("path", { class: "grid", d: `M${x} ${this.bottom}v3` }));
      const kind = minutes === 0 ? "tick last" : minutes === 5 ? "tick first" : "tick";
      if (minutes % 5 === 0 || this.width > 400) {
        parts.push(shape("text", { class: kind, x, y: this.height - 2 }, minutes ? `−${minutes}${GAP}min` : "now"));
      }
    }
    return parts;
  }

  line(line, column, top) {
    const at = this.history.at;
    let path = "";
    let area = "";
    let begun = null;
    let last = null;
    const end = () => {
      if (begun !== null) area += `L${last.x} ${this.bottom}L${begun} ${this.bottom}Z`;
      begun = null;
    };
    for (let place = 0; place < at.length; place += 1) {
      const value = column[place];
      if (at[place] < this.now - SPAN || !known(value)) {
        end();
        continue;
      }
      const point = { x: this.x(at[place]).toFixed(1), at: at[place] };
      const y = this.y(value, top).toFixed(1);
      if (begun !== null && point.at - last.at > this.history.step * 2.5) end();
      path += `${begun === null ? "M" : "L"}${point.x} ${y}`;
      area += begun === null ? `M${point.x} ${this.bottom}L${point.x} ${y}` : `L${point.x} ${y}`;
      if (begun === null) begun = point.x;
      last = point;
    }
    end();
    const parts = path ? [shape("path", { class: `line ${line.kind}`, d: path })] : [];
    if (path && line.filled) parts.unshift(shape("path", { class: `area ${line.kind}`, d: area }));
    return parts;
  }

  /* The figures above the lines: where the cursor is, else the newest. */
  showFigures() {
    const place = this.cursor === null ? this.history.at.length - 1 : this.nearest(this.cursor);
    this.lines.forEach((line, index) => put(this.figures[index], this.format(this.history.column(line.key)[place])));
    this.root.classList.toggle("pointed", this.cursor !== null);
  }

  summary(most) {
    const newest = this.lines.map((line) => {
      const column = this.history.column(line.key);
      return `${line.label} ${this.format(column[column.length - 1])}`;
    });
    return `${this.title}: now ${newest.join(", ")}; at most ${this.format(most)} in five minutes`;
  }
}

/* Charts with one cursor. The time that it points at is written into an element. */
class Charts {
  constructor(root, moment, definitions) {
    this.history = new Past();
    this.moment = moment;
    this.charts = definitions.map((definition) => {
      const chart = new Chart(definition);
      chart.onCursor = (time) => this.point(time);
      root.append(chart.root);
      return chart;
    });
  }

  point(time) {
    for (const chart of this.charts) chart.setCursor(time);
    put(this.moment, time === null ? "last 5 minutes" : `at ${as.clock(time)}`);
  }

  show(news, now, first) {
    if (first) this.history.clear();
    this.history.add(news);
    for (const chart of this.charts) chart.show(this.history, now);
  }
}
