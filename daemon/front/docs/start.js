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
