"use strict";

/* One worker from near: its figures, its stack as it is now, a flame graph of five seconds, and its restart. */

const RECORDED = 5; // seconds

class Panel {
  constructor(onClose) {
    this.root = find("panel");
    this.onClose = onClose;
    this.name = null;
    this.facts = new Facts();
    find("panel-facts").append(this.facts.root);
    this.flame = new FlameGraph(find("flame"));
    this.opened = 0;
    this.recording = false;
    find("panel-close").addEventListener("click", () => this.close());
    find("record").addEventListener("click", () => this.record());
    find("restart").addEventListener("click", () => this.ask(true));
    find("confirm-no").addEventListener("click", () => this.ask(false));
    find("confirm-yes").addEventListener("click", () => this.restart());
    find("stack-hold").addEventListener("click", () => this.hold(!this.held));
    document.addEventListener("keydown", (event) => this.key(event));
  }

  path(rest = "") {
    return `/v1/workers/${encodeURIComponent(this.name).replaceAll("%3A", ":")}${rest}`;
  }

  open(name) {
    if (this.name === name) return;
    this.leave();
    this.name = name;
    this.opened += 1;
    put(find("panel-title"), name);
    put(find("stack"), "reading…");
    put(find("stack-note"), "live");
    put(find("said"), "");
    find("flame-part").hidden = true;
    this.hold(false);
    this.ask(false, false);
    this.root.hidden = false;
    document.body.classList.add("with-panel");
    this.root.focus();
    this.follow(this.opened);
  }

  close() {
    if (this.name === null) return;
    const name = this.name;
    this.leave();
    this.root.hidden = true;
    document.body.classList.remove("with-panel");
    this.onClose(name);
  }

  /* Give up what was begun for the worker that was shown. */
  leave() {
    this.name = null;
    this.opened += 1;
    if (this.abort) this.abort.abort();
    this.abort = new AbortController();
    this.recording = false;
    find("record").disabled = false;
  }

  key(event) {
    if (event.key !== "Escape" || this.name === null) return;
    if (!find("confirm").hidden) this.ask(false);
    else this.close();
  }

  // Figures

  show(worker) {
    if (this.name === null) return;
    if (!worker) {
      put(find("panel-state"), "is gone");
      return;
    }
    const [name, kind] = stateOf(worker);
    changeSign(find("panel-sign"), name);
    mark(this.root, "data-kind", kind);
    put(find("panel-state"), `${worker.state} for ${as.span(worker.since)}`);
    find("panel-reason").hidden = !worker.reason;
    put(find("panel-reason"), worker.reason ? `Last end: ${worker.reason}` : "");
    const switches = worker.switches || {};
    this.facts.show([
      ["Process", worker.pid ? String(worker.pid) : DASH],
      ["Generation", known(worker.generation) ? String(worker.generation) : DASH],
      ["Restarts", as.count(worker.restarts)],
      ["In flight", `${as.count(worker.in_flight)} / ${as.count(worker.slots)}`],
      ["Oldest call", as.seconds(worker.oldest)],
      ["Load", as.seconds(worker.load)],
      ["Answered", as.count(worker.answered)],
      ["Rate", as.rate(worker.rate)],
      ["p50, p95", `${as.seconds(worker.p50)}, ${as.seconds(worker.p95)}`],
      ["CPU", as.percent(worker.cpu)],
      ["Resident memory", as.bytes(worker.rss)],
      ["Private memory", as.bytes(worker.uss)],
      ["Threads", as.count(worker.threads)],
      ["Descriptors", as.count(worker.fds)],
      ["Loop lag", as.seconds(worker.loop_lag)],
      ["Loop turned", known(worker.turned) ? `${as.seconds(worker.turned)} ago` : DASH],
      ["Switches, own", as.rate(switches.voluntary)],
      ["Switches, forced", as.rate(switches.involuntary)],
    ]);
    this.showTables(worker);
  }

  showTables(worker) {
    const agents = Object.entries(worker.agents || {}).map(([name, agent]) => [name, as.rate(agent.rate), as.seconds(agent.p50), as.seconds(agent.p95)]);
    const pools = Object.entries(worker.database || {}).map(([kind, pool]) => [
      kind,
      `${as.count(pool.size)} of ${as.count(pool.max)}`,
      ...[pool.available, pool.waiting, pool.requests, pool.errors].map(as.count),
      as.seconds(pool.wait_seconds),
    ]);
    const tables = [];
    if (agents.length) tables.push(Panel.table(["Agent", "Rate", "p50", "p95"], agents));
    if (pools.length) tables.push(Panel.table(["Pool", "Open", "Free", "Waiting", "Served", "Errors", "Waited in all"], pools));
    const shown = JSON.stringify([agents, pools]);
    if (this.shown !== shown) find("panel-tables").replaceChildren(...tables);
    this.shown = shown;
  }

  static table(titles, rows) {
    const table = make("table");
    const line = (texts, tag) => {
      const row = make("tr");
      texts.forEach((text, place) => {
        const cell = make(tag === "th" || !place ? "th" : "td", "", text);
        if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
        row.append(cell);
      });
      return row;
    };
    const head = make("thead");
    head.append(line(titles, "th"));
    const body = make("tbody");
    body.append(...rows.map((row) => line(row, "td")));
    table.append(head, body);
    const scroll = make("div", "scroll");
    scroll.append(table);
    return scroll;
  }

  // The stack

  hold(held) {
    this.held = held;
    mark(find("stack-hold"), "aria-pressed", held);
    put(find("stack-hold"), held ? "Go on" : "Hold");
  }

  /* Read the stack each second for as long as this panel stays open. */
  async follow(opened) {
    while (this.opened === opened) {
      if (!document.hidden && !this.held && !this.recording) await this.readStack(opened);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  async readStack(opened) {
    let text;
    let note;
    try {
      const response = await request(this.path("/stack"), { signal: this.abort.signal });
      text = response.ok ? await response.text() : Panel.refusal(await explain(response));
      note = response.ok ? `live, ${as.clock(Date.now() / 1000)}` : "not available";
    } catch {
      if (this.opened !== opened) return;
      [text, note] = ["The daemon does not answer.", "not available"];
    }
    if (this.opened !== opened || this.held) return;
    put(find("stack"), text);
    put(find("stack-note"), note);
  }

  static refusal(problem) {
    if (problem.name === "not-found") {
      return `${problem.detail}.\nThis listener has no admin routes: open the dashboard on the one that http.admin_bind names.`;
    }
    if (problem.name === "forbidden") return `${problem.detail}.\nSign in with such a token to see stacks and to restart workers.`;
    return `${problem.detail}.`;
  }

  // Flame graph and restart

  async record() {
    const opened = this.opened;
    this.recording = true;
    find("record").disabled = true;
    put(find("said"), `Recording ${this.name} for ${RECORDED} seconds…`);
    try {
      const response = await request(this.path(`/profile?seconds=${RECORDED}&format=raw`), { signal: this.abort.signal });
      if (response.ok) this.showFlame(await response.text(), opened);
      else this.say(opened, Panel.refusal(await explain(response)));
    } catch {
      this.say(opened, "The daemon does not answer.");
    }
    if (this.opened !== opened) return;
    this.recording = false;
    find("record").disabled = false;
  }

  say(opened, text) {
    if (this.opened === opened) put(find("said"), text);
  }

  showFlame(text, opened) {
    if (this.opened !== opened) return;
    find("flame-part").hidden = false;
    this.flame.show(text);
    const samples = this.flame.all.samples;
    put(find("flame-note"), `${as.count(samples)} samples, ${as.clock(Date.now() / 1000)}`);
    put(find("said"), samples ? "" : "No sample was taken: the worker did nothing in that time.");
    const save = find("flame-save");
    URL.revokeObjectURL(save.href);
    save.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    save.download = `${this.name.replace(":", "-")}.collapsed.txt`;
  }

  ask(open, focus = true) {
    find("confirm").hidden = !open;
    find("restart").hidden = open;
    if (focus) find(open ? "confirm-no" : "restart").focus();
  }

  async restart() {
    const opened = this.opened;
    this.ask(false);
    put(find("said"), `Restarting ${this.name}…`);
    try {
      const response = await request(this.path("/restart"), { method: "POST" });
      this.say(opened, response.ok ? `The restart of ${this.name} has begun.` : Panel.refusal(await explain(response)));
    } catch {
      this.say(opened, "The daemon does not answer.");
    }
  }
}
