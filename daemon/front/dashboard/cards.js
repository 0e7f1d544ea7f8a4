"use strict";

/* The tiles, the queue, the throttle, the host, the agents and the events. */

class Tiles {
  static ALL = [
    ["rate", "Throughput", "Answers a second", (s) => as.rate(s.traffic.rate)],
    ["p50", "p50", "Half of all calls were quicker", (s) => as.seconds(s.traffic.p50)],
    ["p95", "p95", "95 of 100 calls were quicker", (s) => as.seconds(s.traffic.p95)],
    ["p99", "p99", "99 of 100 calls were quicker", (s) => as.seconds(s.traffic.p99)],
    ["refused", "Refused", "Requests a second that were refused", (s) => as.rate(s.traffic.refused)],
    ["failed", "Failed", "Answers a second that were errors of agents or workers", (s) => as.rate(s.traffic.failed)],
    ["flight", "In flight", "Calls that workers have now, of their slots", (s) => `${as.count(s.flight)}${GAP}of${GAP}${as.count(s.slots)}`],
    ["waiting", "Waiting", "Requests in the queue", (s) => as.count(s.queue.requests)],
  ];

  constructor(root) {
    this.figures = Tiles.ALL.map(([key, label, title, read]) => {
      const tile = make("div", "tile");
      tile.id = `tile-${key}`;
      tile.title = title;
      const figure = make("b", "", DASH);
      tile.append(make("span", "label", label), figure);
      root.append(tile);
      return { key, tile, figure, read };
    });
  }

  show(status) {
    const alarms = { refused: status.traffic.refused > 0, failed: status.traffic.failed > 0, waiting: status.queue.refusing };
    for (const { key, tile, figure, read } of this.figures) {
      putMeasure(figure, read(status));
      tile.classList.toggle("alarm", Boolean(alarms[key]));
    }
  }
}

/* A bar with marks at levels that mean something. */
class Gauge {
  constructor(label, marks = []) {
    this.root = make("div", "gauge");
    const line = make("div", "gauge-line");
    this.label = make("span", "label", label);
    this.figure = make("span", "figure", DASH);
    line.append(this.label, this.figure);
    this.track = make("div", "track");
    this.fill = make("i", "fill");
    this.track.append(this.fill);
    this.root.append(line, this.track);
    this.marks = marks.map((name) => {
      const tick = make("span", "level");
      const text = make("span", "level-name");
      tick.append(text);
      this.track.append(tick);
      return { name, tick, text };
    });
    if (marks.length) this.root.classList.add("marked");
  }

  /* value of whole; levels: the marks' values, with their texts. */
  show(text, value, whole, levels = [], alarm = false) {
    put(this.figure, text);
    const part = known(value) && whole > 0 ? Math.min(1, value / whole) : 0;
    this.fill.style.width = `${part * 100}%`;
    this.fill.hidden = !part;
    this.root.classList.toggle("alarm", alarm);
    this.marks.forEach(({ name, tick, text: label }, place) => {
      const level = levels[place];
      tick.hidden = !known(level && level[0]) || !(whole > 0);
      if (tick.hidden) return;
      const at = Math.min(1, level[0] / whole);
      tick.style.left = `${at * 100}%`;
      tick.classList.toggle("right", at > 0.8);
      put(label, `${name} ${level[1]}`);
    });
  }
}

/* Names and figures, under a title that goes with them. */
class Facts {
  constructor(title = "") {
    this.root = make("div");
    this.list = make("dl", "facts");
    if (title) this.root.append(make("p", "facts-title", title));
    this.root.append(this.list);
    this.figures = new Map();
  }

  show(pairs) {
    this.root.hidden = !pairs.length;
    const names = pairs.map(([name]) => name);
    if (names.join() !== [...this.figures.keys()].join()) this.build(names);
    for (const [name, text] of pairs) put(this.figures.get(name), text);
  }

  build(names) {
    this.figures.clear();
    this.list.replaceChildren(
      ...names.map((name) => {
        const pair = make("div");
        const figure = make("dd", "", DASH);
        pair.append(make("dt", "", name), figure);
        this.figures.set(name, figure);
        return pair;
      })
    );
  }
}

/* A heading with a badge that says how it fares. */
class Heading {
  constructor(root, id, title) {
    this.badge = make("span", "badge");
    this.sign = sign("off");
    this.word = make("span");
    this.badge.append(this.sign, this.word);
    const heading = make("h2", "", title);
    heading.id = id;
    heading.append(this.badge);
    root.append(heading);
  }

  show(kind, word) {
    mark(this.badge, "data-kind", kind);
    changeSign(this.sign, kind);
    put(this.word, word);
  }
}

class QueueCard {
  constructor(root) {
    this.heading = new Heading(root, "queue-title", "Queue");
    this.requests = new Gauge("Requests waiting", ["low", "high"]);
    this.bytes = new Gauge("Bytes waiting", ["low", "high"]);
    this.facts = new Facts();
    this.byAgent = new Facts("By agent");
    root.append(this.requests.root, this.bytes.root, this.facts.root, this.byAgent.root);
  }

  show(queue) {
    if (queue.refusing) this.heading.show("warn", "refusing until the low mark");
    else this.heading.show("ok", "taking requests");
    const { requests, high_water: high, low_water: low, max_bytes: most } = queue;
    const levels = [[low, as.count(low)], [high, as.count(high)]];
    this.requests.show(as.count(requests), requests, high, levels, queue.refusing);
    const byteLevels = [[queue.low_bytes, as.bytes(queue.low_bytes)], [most, as.bytes(most)]];
    this.bytes.show(as.bytes(queue.bytes), queue.bytes, most, byteLevels, queue.refusing && queue.bytes > requests);
    const byAgent = Object.entries(queue.by_agent || {}).sort((a, b) => b[1] - a[1]).slice(0, 6);
    this.facts.show([["Oldest waits", as.seconds(queue.oldest)], ["Streams being sent", as.count(queue.streams)]]);
    this.byAgent.show(byAgent.map(([name, count]) => [name, as.count(count)]));
  }
}

class ThrottleCard {
  constructor(root) {
    this.heading = new Heading(root, "throttle-title", "Throttle");
    this.limit = new Gauge("Calls, of the limit");
    this.delay = new Gauge("Queueing delay", ["target"]);
    this.facts = new Facts();
    this.refused = new Facts("Refused so far");
    root.append(this.limit.root, this.delay.root, this.facts.root, this.refused.root);
  }

  show(throttle, flight) {
    if (throttle.enabled === undefined) this.heading.show("off", "not measured");
    else if (!throttle.enabled) this.heading.show("off", "off");
    else if (throttle.overloaded) this.heading.show("warn", "overloaded");
    else this.heading.show("ok", "open");
    const { limit, delay, target } = throttle;
    const text = known(limit) ? `${as.count(flight)} of ${as.count(limit)}` : DASH;
    this.limit.show(text, flight, limit, [], known(limit) && flight >= limit && Boolean(throttle.overloaded));
    const whole = Math.max(2 * (target || 0), delay || 0);
    this.delay.show(as.seconds(delay), delay, whole, [[target, as.seconds(target)]], delay > target);
    const paces = Object.values(throttle.pace || {});
    const pace = paces.length ? as.percent(Math.min(...paces)) : DASH;
    const held = known(throttle.held) ? `${as.count(throttle.held)} now, ${as.count(throttle.paced)} in all` : DASH;
    this.facts.show([["Objective", as.seconds(throttle.objective)], ["Pace", pace], ["Held back", held]]);
    this.refused.show(Object.entries(throttle.refused || {}).map(([reason, count]) => [reason, as.count(count)]));
  }
}

class HostCard {
  constructor(root) {
    const part = (title, ...gauges) => {
      const box = make("div");
      const facts = new Facts();
      box.append(make("h3", "", title), ...gauges.map((gauge) => gauge.root), facts.root);
      root.append(box);
      return facts;
    };
    this.cpu = new Gauge("CPU");
    this.memory = new Gauge("Memory used");
    this.host = part("Host", this.cpu, this.memory);
    this.own = new Gauge("CPU of one core");
    this.supervisor = part("Supervisor", this.own);
    this.granted = new Gauge("Connections granted");
    this.database = part("Database", this.granted);
  }

  show({ host, supervisor, database }) {
    this.cpu.show(`${as.percent(host.cpu)} of ${as.count(host.cpus)}${GAP}CPUs`, host.cpu, 1);
    const memory = host.memory || {};
    this.memory.show(`${as.bytes(memory.used)} of ${as.bytes(memory.total)}`, memory.used, memory.total);
    const pairs = [["Load", host.load ? host.load.map((each) => each.toFixed(2)).join("  ") : DASH]];
    for (const [name, pressure] of Object.entries(host.pressure || {})) {
      pairs.push([`Pressure: ${name}`, known(pressure && pressure.some) ? `${digits(pressure.some)}${GAP}%` : DASH]);
    }
    this.host.show(pairs);
    this.own.show(as.percent(supervisor.cpu), supervisor.cpu, 1, [], supervisor.cpu > 0.9);
    this.supervisor.show([
      ["Memory", as.bytes(supervisor.rss)],
      ["Loop lag", as.seconds(supervisor.loop_lag)],
      ["Descriptors", as.count(supervisor.fds)],
      ["Threads", as.count(supervisor.threads)],
    ]);
    const off = database.mode === "off";
    const text = off ? "off" : `${as.count(database.granted)} of ${as.count(database.max_connections)}`;
    this.granted.show(text, off ? 0 : database.granted, database.max_connections);
    this.database.show([["Mode", database.mode || DASH]]);
  }
}

class AgentTable {
  constructor(body) {
    this.body = body;
    this.rows = new Map();
  }

  show(agents) {
    const rows = new Map();
    agents.forEach((agent, place) => {
      const row = this.rows.get(agent.name) || this.build(agent.name);
      rows.set(agent.name, row);
      if (this.body.children[place] !== row.root) this.body.insertBefore(row.root, this.body.children[place] || null);
      this.fill(row.cells, agent);
    });
    for (const [name, row] of this.rows) if (!rows.has(name)) row.root.remove();
    this.rows = rows;
  }

  build(name) {
    const root = make("tr");
    const head = make("th", "", name);
    head.scope = "row";
    const cells = Array.from({ length: 11 }, () => make("td", "", DASH));
    root.append(head, ...cells);
    return { root, cells };
  }

  fill(cells, agent) {
    const times = ["p50", "p95", "p99"].map((key) => as.seconds(agent[key]));
    const means = ["wall", "cpu", "db"].map((key) => as.seconds(agent[key]));
    const pool = agent.pool ? `${agent.pool}${agent.kind ? `, ${agent.kind}` : ""}` : DASH;
    const texts = [pool, as.rate(agent.rate), as.count(agent.in_flight), as.count(agent.waiting), ...times, as.rate(agent.errors), ...means];
    texts.forEach((text, place) => put(cells[place], text));
    cells[7].classList.toggle("some", agent.errors > 0);
  }
}

class EventList {
  static MOST = 100;
  static SIGNS = {
    ...{ restart: "move", reload: "move", started: "ok", stopped: "off", recycle: "move" },
    ...{ timeout: "warn", throttle: "warn", stuck: "bad", death: "bad", fatal: "bad" },
  };

  constructor(root) {
    this.root = root;
    this.empty = make("li", "empty", "nothing has happened yet");
    this.clear();
  }

  clear() {
    this.newest = 0;
    this.root.replaceChildren(this.empty);
  }

  /* News, the newest last; it goes on top. */
  add(events) {
    for (const event of events) {
      if (!(event.at > this.newest)) continue;
      this.newest = event.at;
      this.empty.remove();
      this.root.prepend(this.item(event));
    }
    while (this.root.children.length > EventList.MOST) this.root.lastChild.remove();
  }

  item(event) {
    const kind = EventList.SIGNS[event.kind] || "info";
    const item = make("li");
    mark(item, "data-kind", kind);
    const time = make("time", "", as.clock(event.at));
    time.dateTime = new Date(event.at * 1000).toISOString();
    const text = make("span", "event-text");
    const about = [event.worker, event.agent].filter(Boolean).join(", ");
    text.append(make("b", "", event.kind), about ? ` ${about}` : "", event.text ? `: ${event.text}` : "");
    item.append(time, sign(kind), text);
    return item;
  }
}
