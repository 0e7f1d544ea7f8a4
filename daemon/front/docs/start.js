// Fetches the document and gives it to Swagger UI. Where the daemon asks for a token, so does this page: the token stays
// in this tab, and goes to this origin only.
"use strict";

const KEY = "penstock-token";
const form = document.getElementById("sign-in");
const trouble = document.getElementById("trouble");

function say(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

async function explain(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `status ${answer.status}`;
  }
}

// Swagger UI shows an answer when it has the whole of it. What streams is shown here meanwhile, as it comes.
const STREAMS = /^(application\/x-ndjson|text\/event-stream)\b/;
const SHOWN = 100_000; // characters
const part = (name) => document.getElementById(`stream${name}`);
const request = window.fetch.bind(window);

window.fetch = async (resource, options) => {
  const answer = await request(resource, options);
  if (!answer.body || !STREAMS.test(answer.headers.get("Content-Type") || "")) return answer;
  const { status, statusText, headers, url } = answer;
  const made = new Response(followed(answer.body.getReader(), new URL(url).pathname), { status, statusText, headers });
  Object.defineProperty(made, "url", { value: url });
  return made;
};

function followed(reader, path) {
  const text = new TextDecoder();
  const items = part("-items");
  let ended = false;
  const end = (how) => {
    ended = true;
    part("-of").textContent = `${path}: ${how}`;
    part("-stop").textContent = "Close";
  };
  items.textContent = "";
  part("-of").textContent = `${path}: streams`;
  part("-stop").textContent = "Stop";
  part("").hidden = false;
  part("-stop").onclick = () => {
    if (ended) part("").hidden = true;
    else reader.cancel();
  };
  return new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await reader.read();
        if (done) {
          end("has ended");
          controller.close();
          return;
        }
        items.textContent = (items.textContent + text.decode(value, { stream: true })).slice(-SHOWN);
        items.scrollTop = items.scrollHeight;
        controller.enqueue(value);
      } catch (error) {
        end("was broken off");
        controller.error(error);
      }
    },
    cancel: (reason) => reader.cancel(reason),
  });
}

// Swagger UI has its dark colours below this class.
document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);

function show(spec, token) {
  form.hidden = true;
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#docs",
    deepLinking: true,
    displayRequestDuration: true,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    tryItOutEnabled: true,
    validatorUrl: null, // it would be asked elsewhere
    onComplete: () => {
      if (token) ui.preauthorizeApiKey("bearer", token);
    },
  });
}

// Swagger UI is installed with the daemon by an extra. The daemon says so in place of the file.
async function explainNoSwaggerUI() {
  const answer = await fetch("docs/swagger-ui-bundle.js");
  say(answer.ok ? "Swagger UI was not loaded. Load this page again." : await explain(answer));
}

async function load() {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    if (typeof SwaggerUIBundle === "undefined") {
      await explainNoSwaggerUI();
      return;
    }
    const answer = await fetch("openapi.json", { headers });
    if (answer.ok) {
      say("");
      show(await answer.json(), token);
      return;
    }
    say(answer.status === 401 && !token ? "" : await explain(answer));
    form.hidden = answer.status !== 401;
    sessionStorage.removeItem(KEY);
  } catch {
    say("The daemon does not answer. Load this page again when it runs.");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, document.getElementById("token").value.trim());
  load();
});

load();
