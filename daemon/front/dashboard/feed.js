"use strict";

/* How the page talks to the daemon.

   EventSource cannot send a token, so the stream is read with fetch. It comes again by itself after whatever went wrong,
   each time a little later, and says what state it is in: a page that shows old numbers has to say that they are old. */

const TOKEN = "penstock-token"; // the key in the tab's session storage, which login.html fills

function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers });
}

/* What a response that is no success says, for people. */
async function explain(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Somebody between the daemon and us has answered; its status has to do.
  }
  const name = String(problem.type || "").replace("urn:penstock:problem:", "");
  const detail = problem.detail || `the answer was ${response.status} ${response.statusText}`.trim();
  return { status: response.status, name, detail, later: Number(response.headers.get("Retry-After")) || 0 };
}

class Feed {
  static STALE = 3500; // milliseconds without news after which the page says so
  static SILENT = 12000; // after which the connection is given up
  static SLOWEST = 10000; // between two tries

  /* onStatus(status, first): an event; first: on a new connection. onLink(state, text): connecting, live, stale, lost. */
  constructor(onStatus, onLink) {
    this.onStatus = onStatus;
    this.onLink = onLink;
    this.retry = 1000;
    this.failures = 0;
    this.heard = 0;
    this.due = 0;
    this.abort = null;
    this.wake = null;
  }

  run() {
    addEventListener("online", () => this.now());
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
    setInterval(() => this.look(), 500);
    this.onLink("connecting", "connecting");
    this.loop();
  }

  /* Try at once, if it waits. */
  now() {
    if (this.wake) this.wake();
  }

  async loop() {
    for (;;) {
      const why = await this.connect();
      const delay = Math.max(why.later * 1000, Math.min(Feed.SLOWEST, this.retry * 2 ** this.failures));
      this.failures += 1;
      await this.wait(delay * (0.75 + Math.random() / 2), why.detail);
    }
  }

  wait(milliseconds, why) {
    this.due = Date.now() + milliseconds;
    this.why = why;
    this.look();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    }).finally(() => {
      this.wake = null;
      this.due = 0;
    });
  }

  /* Read the stream to its end; why it ended. */
  async connect() {
    this.abort = new AbortController();
    this.heard = Date.now();
    try {
      const response = await request("/v1/events", { signal: this.abort.signal });
      if (response.status === 401) {
        sessionStorage.removeItem(TOKEN);
        location.reload(); // to the page that asks for a token
      }
      if (!response.ok) return await explain(response);
      await this.read(response.body.pipeThrough(new TextDecoderStream()).getReader());
      return { detail: "the daemon has ended the stream", later: 0 };
    } catch (error) {
      return { detail: error.name === "AbortError" ? "the daemon sends no updates" : "the daemon does not answer", later: 0 };
    }
  }

  async read(reader) {
    let text = "";
    let first = true;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.heard = Date.now();
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) first = this.take(block, first);
    }
  }

  /* One block of the stream. Whether the first status is still to come. */
  take(block, first) {
    let event = "";
    let data = "";
    for (const line of block.split("\n")) {
      if (line.startsWith("retry: ")) this.retry = Number(line.slice(7)) || this.retry;
      else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
    if (event !== "status") return first;
    this.failures = 0;
    this.onLink("live", "Live");
    this.onStatus(JSON.parse(data), first);
    return false;
  }

  /* Twice a second: how old is what is shown? */
  look() {
    if (this.due) {
      const left = Math.max(0, Math.ceil((this.due - Date.now()) / 1000));
      this.onLink("lost", left ? `${this.why}; next try in ${left}${GAP}s` : `${this.why}; trying`);
      return;
    }
    const silence = Date.now() - this.heard;
    if (silence > Feed.SILENT) this.abort.abort();
    else if (silence > Feed.STALE) this.onLink("stale", `no update for ${as.span(silence / 1000)}`);
  }
}
