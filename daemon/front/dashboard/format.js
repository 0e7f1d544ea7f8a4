"use strict";

/* Numbers as people read them: three digits that count, and a unit. What was not measured is a dash. */

const DASH = "–";
const GAP = "\u00a0"; // between a number and its unit, so that a line never breaks there

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/* Three significant digits, and whole numbers from a hundred on. */
function digits(value) {
  const size = Math.abs(value);
  if (size >= 99.95) return Math.round(value).toLocaleString("en");
  if (size >= 9.995) return value.toFixed(1);
  if (size >= 0.9995) return value.toFixed(2);
  if (value === 0) return "0";
  return value.toFixed(size >= 0.0995 ? 2 : 3);
}

const as = {
  count(value) {
    return known(value) ? Math.round(value).toLocaleString("en") : DASH;
  },

  rate(value) {
    if (!known(value)) return DASH;
    return (value === 0 ? "0" : value < 9.995 ? value.toFixed(1) : digits(value)) + GAP + "/s";
  },

  /* A short time, of which parts count. */
  seconds(value) {
    if (!known(value)) return DASH;
    if (value === 0) return "0" + GAP + "ms";
    if (value < 0.001) return Math.max(1, Math.round(value * 1e6)) + GAP + "µs";
    if (value < 0.9995) return digits(value * 1e3) + GAP + "ms";
    return value < 120 ? digits(value) + GAP + "s" : as.span(value);
  },

  /* How long something lasts already: two units at most. */
  span(value) {
    if (!known(value)) return DASH;
    const whole = Math.max(0, Math.floor(value));
    const two = (number) => String(number).padStart(2, "0");
    if (whole < 60) return whole + GAP + "s";
    if (whole < 3600) return Math.floor(whole / 60) + GAP + "min" + GAP + two(whole % 60) + GAP + "s";
    if (whole < 86400) return Math.floor(whole / 3600) + GAP + "h" + GAP + two(Math.floor((whole % 3600) / 60)) + GAP + "min";
    return Math.floor(whole / 86400) + GAP + "d" + GAP + two(Math.floor((whole % 86400) / 3600)) + GAP + "h";
  },

  bytes(value) {
    if (!known(value)) return DASH;
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let place = 0;
    while (value >= 1023.5 && place < units.length - 1) {
      value /= 1024;
      place += 1;
    }
    return (place ? digits(value) : Math.round(value)) + GAP + units[place];
  },

  /* A part of one as percent; may be more than all of one, as a process on several cores is. */
  percent(value) {
    if (!known(value)) return DASH;
    const hundred = value * 100;
    return (hundred && hundred < 9.95 ? hundred.toFixed(1) : Math.round(hundred)) + GAP + "%";
  },

  /* The time of day of a moment in seconds since 1970. */
  clock(value) {
    return known(value) ? new Date(value * 1000).toLocaleTimeString("en-GB") : DASH;
  },
};

/* The elements of the page: changed only where they differ, so that a quiet page costs the browser nothing. */

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/* A number large and its unit small. */
function putMeasure(element, text) {
  if (element.dataset.shown === text) return;
  element.dataset.shown = text;
  const [number, ...unit] = text.split(GAP);
  const parts = [number];
  for (let place = 0; place < unit.length; place += 1) {
    parts.push(place % 2 ? GAP + unit[place] : make("small", "", GAP + unit[place]));
  }
  element.replaceChildren(...parts);
}

function mark(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

function make(tag, className = "", content = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (content !== "") element.append(content);
  return element;
}

/* One of the signs that index.html defines; words beside it say the same. */
function sign(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "sign");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "use"));
  svg.firstChild.setAttribute("href", `#sign-${name}`);
  return svg;
}

function changeSign(svg, name) {
  mark(svg.firstElementChild, "href", `#sign-${name}`);
}

function find(id) {
  return document.getElementById(id);
}
