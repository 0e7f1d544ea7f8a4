"use strict";

/* The workers as lanes, one below the other in the order of their names. */

/* Each state of a worker: its sign, and what kind of news it is. */
const STATES = {
  RUNNING: ["ok", "ok"],
  STARTING: ["move", "move"],
  STOPPING: ["move", "move"],
  BACKOFF: ["warn", "warn"],
  STOPPED: ["off", "off"],
  EXITED: ["warn", "warn"],
  FATAL: ["bad", "bad"],
};
const MOST_CELLS = 64; // slots drawn one by one
const OLD = 1; // seconds from which the age of the oldest call is shown
const STUCK = 1; // seconds without a turn of its loop from which a worker is said to be stuck

function stateOf(worker) {
  return STATES[worker.state] || ["warn", "warn"];
}

class Lane {
  constructor(name, onOpen) {
    this.name = name;
    this.root = make("li", "lane");
    this.sign = sign("off");
    this.button = make("button", "lane-name", name);
    this.button.type = "button";
    mark(this.button, "aria-expanded", "false");
    mark(this.button, "aria-controls", "panel");
    const title = make("span", "lane-title");
    title.append(this.sign, this.button);
    this.state = this.part("state", "State");
    this.flight = this.part("flight", "In flight");
    this.cells = make("span", "cells");
    this.cells.setAttribute("aria-hidden", "true");
    this.flight.before(this.cells);
    this.load = this.part("load", "Load");
    this.cpu = this.part("cpu", "CPU");
    this.bar = make("span", "bar");
    this.bar.append(make("i"));
    this.cpu.before(this.bar);
    this.memory = this.part("memory", "Memory");
    this.rate = this.part("rate", "Rate");
    this.p95 = this.part("p95", "p95");
    this.restarts = this.part("restarts", "Restarts");
    this.root.prepend(title);
    this.reason = make("p", "lane-reason");
    this.reason.hidden = true;
    this.root.append(this.reason);
    this.root.addEventListener("click", () => onOpen(name));
  }

  /* One figure with its name, which only narrow screens and screen readers show. */
  part(kind, label) {
    const figure = make("span", "figure", DASH);
    const cell = make("span", `lane-${kind}`);
    cell.append(make("span", "label", label), figure);
    this.root.append(cell);
    return figure;
  }

  show(worker) {
    const [name, kind] = stateOf(worker);
    changeSign(this.sign, name);
    mark(this.root, "data-kind", kind);
    mark(this.root, "data-state", worker.state);
    put(this.state, `${worker.state} ${as.span(worker.since)}`);
    this.showCells(worker);
    put(this.load, as.seconds(worker.load));
    put(this.cpu, as.percent(worker.cpu));
    this.bar.firstChild.style.width = `${Math.min(1, worker.cpu || 0) * 100}%`;
    put(this.memory, as.bytes(worker.rss));
    put(this.rate, as.rate(worker.rate));
    put(this.p95, as.seconds(worker.p95));
    put(this.restarts, as.count(worker.restarts));
    this.restarts.classList.toggle("some", worker.restarts > 0);
    const troubles = this.troubles(worker);
    put(this.reason, troubles);
    this.reason.hidden = !troubles;
  }

  troubles(worker) {
    const found = [];
    if (worker.state === "RUNNING" && worker.turned > STUCK) found.push(`its loop has not turned for ${as.seconds(worker.turned)}`);
    if (worker.oldest > OLD) found.push(`oldest call ${as.seconds(worker.oldest)}`);
    if (worker.reason) found.push(`${worker.state === "RUNNING" ? "last end: " : ""}${worker.reason}`);
    return found.join(" · ");
  }

  showCells(worker) {
    const slots = known(worker.slots) ? worker.slots : 0;
    const drawn = Math.min(slots, MOST_CELLS);
    while (this.cells.children.length > drawn) this.cells.lastChild.remove();
    while (this.cells.children.length < drawn) this.cells.append(make("i"));
    const filled = slots ? Math.min(drawn, Math.ceil((worker.in_flight / slots) * drawn)) : 0;
    [...this.cells.children].forEach((cell, place) => cell.classList.toggle("full", place < filled));
    put(this.flight, `${as.count(worker.in_flight)} / ${as.count(worker.slots)}`);
  }
}

class Lanes {
  constructor(root, onOpen) {
    this.root = root;
    this.onOpen = onOpen;
    this.lanes = new Map();
    root.addEventListener("keydown", (event) => this.key(event));
  }

  show(workers) {
    const names = new Set(workers.map((worker) => worker.name));
    for (const [name, lane] of this.lanes) {
      if (names.has(name)) continue;
      lane.root.remove();
      this.lanes.delete(name);
    }
    workers.forEach((worker, place) => {
      let lane = this.lanes.get(worker.name);
      if (!lane) this.lanes.set(worker.name, (lane = new Lane(worker.name, this.onOpen)));
      if (this.root.children[place] !== lane.root) this.root.insertBefore(lane.root, this.root.children[place] || null);
      lane.show(worker);
    });
  }

  /* Which one has its panel open; null for none. */
  mark(name) {
    for (const [each, lane] of this.lanes) {
      mark(lane.button, "aria-expanded", each === name);
      lane.root.classList.toggle("open", each === name);
    }
  }

  focus(name) {
    const lane = this.lanes.get(name);
    if (lane) lane.button.focus();
  }

  /* The arrow keys go from lane to lane. */
  key(event) {
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    const buttons = [...this.root.querySelectorAll(".lane-name")];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (next) next.focus();
    event.preventDefault();
  }
}
