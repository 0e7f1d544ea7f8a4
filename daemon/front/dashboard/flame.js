"use strict";

/* A flame graph from collapsed stacks ("outer;inner 12", a line for each stack): width is the part of the samples, callers
   stand above what they call. Enter or a click widens a frame; the arrow keys go from one to the next. */

const THINNEST = 0.002; // of the whole: narrower frames are left out

class FlameGraph {
  constructor(root) {
    this.root = root;
    this.path = make("p", "flame-path");
    this.frames = make("div", "flame-frames");
    this.frames.setAttribute("role", "tree");
    this.frames.setAttribute("aria-label", "Flame graph: what the samples found running");
    this.root.append(this.path, this.frames);
    this.frames.addEventListener("click", (event) => this.zoomTo(event.target.closest(".frame")));
    this.frames.addEventListener("keydown", (event) => this.key(event));
    this.frames.addEventListener("focusin", (event) => this.describe(event.target));
    this.frames.addEventListener("pointerover", (event) => this.describe(event.target));
  }

  show(text) {
    this.all = FlameGraph.parse(text);
    this.zoom(this.all);
  }

  static parse(text) {
    const all = { name: "all", samples: 0, inner: new Map(), outer: null, depth: 0 };
    for (const line of text.split("\n")) {
      const gap = line.lastIndexOf(" ");
      const samples = Number(line.slice(gap + 1));
      if (gap < 0 || !(samples > 0)) continue;
      let node = all;
      node.samples += samples;
      for (const name of line.slice(0, gap).split(";")) {
        if (!node.inner.has(name)) {
          node.inner.set(name, { name, samples: 0, inner: new Map(), outer: node, depth: node.depth + 1 });
        }
        node = node.inner.get(name);
        node.samples += samples;
      }
    }
    return all;
  }

  zoom(node) {
    this.base = node;
    const parts = [];
    let deepest = 0;
    const place = (one, left, width) => {
      if (width < THINNEST) return;
      deepest = Math.max(deepest, one.depth);
      parts.push(this.frame(one, left, width));
      let at = left;
      for (const inner of [...one.inner.values()].sort((a, b) => b.samples - a.samples)) {
        const part = (inner.samples / one.samples) * width;
        place(inner, at, part);
        at += part;
      }
    };
    for (let outer = node.outer; outer; outer = outer.outer) parts.unshift(this.frame(outer, 0, 1, "outer"));
    place(node, 0, 1);
    this.frames.style.height = `${(deepest + 1) * 1.25}rem`;
    this.frames.replaceChildren(...parts);
    const base = parts[node.depth];
    base.tabIndex = 0;
    this.describe(base);
  }

  frame(node, left, width, kind = "") {
    const frame = make("div", `frame tone${FlameGraph.tone(node.name)} ${kind}`, node.name);
    frame.setAttribute("role", "treeitem");
    frame.setAttribute("aria-level", node.depth + 1);
    frame.setAttribute("aria-label", this.text(node));
    frame.title = this.text(node);
    frame.tabIndex = -1;
    frame.style.left = `${left * 100}%`;
    frame.style.width = `${width * 100}%`;
    frame.style.top = `${node.depth * 1.25}rem`;
    frame.node = node;
    return frame;
  }

  text(node) {
    return `${node.name}: ${as.percent(node.samples / this.all.samples)}, ${as.count(node.samples)} samples`;
  }

  /* Frames of one file or package look alike. */
  static tone(name) {
    const where = /\(([^():]+)/.exec(name);
    let sum = 7;
    for (const letter of (where ? where[1] : name).split("/")[0]) sum = (sum * 31 + letter.charCodeAt(0)) % 997;
    return sum % 6;
  }

  describe(frame) {
    if (frame.node) put(this.path, this.text(frame.node));
  }

  zoomTo(frame) {
    if (!frame) return;
    this.zoom(frame.node === this.base && frame.node.outer ? frame.node.outer : frame.node);
    this.frames.querySelector("[tabindex='0']").focus();
  }

  key(event) {
    const frame = event.target;
    const all = [...this.frames.children];
    const { offsetTop: top, offsetLeft: left, offsetWidth: width } = frame;
    const step = frame.offsetHeight;
    const beside = all.filter((each) => Math.abs(each.offsetTop - top) < 2);
    const moves = {
      ArrowUp: () => all.find((each) => each.node === frame.node.outer),
      ArrowDown: () => all.find((each) => each.offsetTop > top + step / 2 && each.node.outer === frame.node),
      ArrowLeft: () => beside.filter((each) => each.offsetLeft < left).pop(),
      ArrowRight: () => beside.find((each) => each.offsetLeft > left + width / 2),
    };
    if (event.key === "Enter" || event.key === " ") this.zoomTo(frame);
    else if (event.key in moves) (moves[event.key]() || frame).focus();
    else return;
    event.preventDefault();
  }
}
