"use strict";

/* The page: takes each status from the feed, and gives every part of the page what it shows. */

/* A status in which every part is there, with what the daemon did not measure left open. */
function complete(status) {
  const workers = status.workers || [];
  const sum = (key) => workers.reduce((total, worker) => total + (worker[key] || 0), 0);
  return {
    ...{ queue: {}, throttle: {}, database: {}, host: {}, supervisor: {}, traffic: {}, events: [], history: null },
    ...Object.fromEntries(Object.entries(status).filter(([, value]) => value !== null)),
    workers,
    agents: (status.agents || []).map((agent) => (typeof agent === "string" ? { name: agent } : agent)),
    flight: sum("in_flight"),
    slots: sum("slots"),
  };
}

/* The daemon's state as a sign, a word and a sentence. */
function verdict(status) {
  const running = status.workers.filter((worker) => worker.state === "RUNNING").length;
  const all = status.workers.length;
  const facts = `${running} of ${all} workers run, ${as.count(status.flight)} calls in flight, ${as.count(status.queue.requests)} waiting`;
  if (status.state !== "ready") return ["bad", "Not ready", `${status.state}; ${facts}`];
  if (running < all) return ["warn", "Degraded", facts];
  if (status.throttle.overloaded) return ["warn", "Overloaded", `refusing what it cannot do in time; ${facts}`];
  return ["ok", "Ready", facts];
}

class Page {
  static CHARTS = [
    { title: "Throughput", note: "answers a second", format: as.rate, axis: digits, least: 1, lines: [{ key: "rate", label: "answered", kind: "first", filled: true }] },
    {
      title: "Latency", note: "of answers", format: as.seconds, least: 0.001,
      lines: [{ key: "p50", label: "p50", kind: "first" }, { key: "p95", label: "p95", kind: "second" }, { key: "p99", label: "p99", kind: "third" }],
    },
    {
      title: "Refusals", note: "and failures a second", format: as.rate, axis: digits, least: 1,
      lines: [{ key: "refused", label: "refused", kind: "warn" }, { key: "failed", label: "failed", kind: "bad" }],
    },
    { title: "Queue", note: "requests waiting", format: as.count, least: 4, lines: [{ key: "queue", label: "waiting", kind: "first", filled: true }] },
    {
      title: "Concurrency", note: "calls at once", format: as.count, least: 4,
      lines: [{ key: "in_flight", label: "in flight", kind: "first", filled: true }, { key: "limit", label: "throttle's limit", kind: "second" }],
    },
    { title: "CPU", note: "of the host", format: as.percent, least: 1, most: 1, lines: [{ key: "cpu", label: "busy", kind: "first", filled: true }] },
  ];

  constructor() {
    this.tiles = new Tiles(find("tiles"));
    this.lanes = new Lanes(find("lanes"), (name) => this.open(name));
    this.panel = new Panel((name) => this.closed(name));
    this.queue = new QueueCard(find("queue"));
    this.throttle = new ThrottleCard(find("throttle"));
    this.host = new HostCard(find("hosts"));
    this.charts = new Charts(find("charts"), find("moment"), Page.CHARTS);
    this.agents = new AgentTable(find("agents"));
    this.events = new EventList(find("events"));
    this.feed = new Feed((status, first) => this.take(status, first), (state, text) => this.link(state, text));
    this.status = null;
    // The panel leaves the header free, which says whether what is shown is true.
    const header = document.querySelector(".top");
    new ResizeObserver(() => document.body.style.setProperty("--top", `${header.offsetHeight}px`)).observe(header);
    find("again").addEventListener("click", () => this.feed.now());
    find("theme").addEventListener("click", () => this.changeTheme());
    document.addEventListener("visibilitychange", () => document.hidden || this.show());
  }

  run() {
    this.theme(localStorage.getItem("penstock-theme") || "auto");
    this.feed.run();
  }

  // News

  take(status, first) {
    this.status = complete(status);
    if (first) this.events.clear();
    this.events.add(this.status.events);
    this.charts.show(this.status.history, this.status.at, first);
    if (!document.hidden) this.show();
  }

  show() {
    const status = this.status;
    if (!status) return;
    const [kind, word, text] = verdict(status);
    mark(find("state"), "data-kind", kind);
    changeSign(find("state").firstElementChild, kind);
    put(find("state-word"), word);
    put(find("state-text"), text);
    put(find("version"), status.version || "");
    put(find("uptime"), as.span(status.uptime));
    put(find("lanes-note"), `${status.workers.length}`);
    put(find("agents-note"), `${status.agents.length}`);
    this.tiles.show(status);
    this.lanes.show(status.workers);
    this.queue.show(status.queue);
    this.throttle.show(status.throttle, status.flight);
    this.host.show(status);
    this.agents.show(status.agents);
    this.panel.show(status.workers.find((worker) => worker.name === this.panel.name));
    this.title();
  }

  link(state, text) {
    mark(document.body, "data-link", state);
    put(find("link"), { connecting: "Connecting", live: "Live", stale: "Stale", lost: "Disconnected" }[state] + (state === "stale" || state === "lost" ? `: ${text}` : ""));
    find("again").hidden = state !== "lost";
    this.title(state);
  }

  title(state = document.body.dataset.link) {
    const ready = this.status && verdict(this.status)[1];
    document.title = `${state === "lost" ? "Disconnected" : ready || "Connecting"} · Penstock`;
  }

  // The panel

  open(name) {
    this.panel.open(name);
    this.lanes.mark(name);
    this.show();
  }

  closed(name) {
    this.lanes.mark(null);
    this.lanes.focus(name);
  }

  // Light and dark

  changeTheme() {
    const order = ["auto", "light", "dark"];
    const next = order[(order.indexOf(find("theme-name").textContent) + 1) % order.length];
    localStorage.setItem("penstock-theme", next);
    this.theme(next);
  }

  theme(name) {
    mark(document.documentElement, "data-theme", name);
    put(find("theme-name"), name);
  }
}

new Page().run();
