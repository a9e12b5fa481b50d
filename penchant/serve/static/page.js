// What every part of the page stands on: elements, safe texts, numbers, and requests to this server alone.

export const byId = (id) => document.getElementById(id);

const KEPT = new Set(["\n", "\t", "\u200c", "\u200d"]);
const LONGEST = 8000;

/** A text with characters that cannot be seen as their code point, so that it can hide or reorder nothing. */
export function visible(value, longest = LONGEST) {
  const text = String(value).replaceAll("\r\n", "\n");
  const shown = text.length > longest ? `${text.slice(0, longest)}… [${count(text.length - longest)} more characters]` : text;
  return shown.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, (c) =>
    KEPT.has(c) ? c : `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

/** An element; texts among its children go in as text, never as markup. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && !key.startsWith("aria")) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.flat().map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

/** Where a feature is read, in words: "20:last" is at the end. */
export const place = (view) => ({ last: "at the end", mean: "on average" })[view.split(":")[1]] ?? view;

/** A text of a user's own or the model's, set apart from the direction of what surrounds it. */
export const bdi = (text) => make("bdi", {}, text);

export const count = (value) => Math.round(value).toLocaleString("en");

/** 0.0345 -> 0.0345, three significant digits. */
export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size && (size < 1e-4 || size >= 1e6)) return value.toExponential(digits - 1).replace("-", "−");
  const decimals = size ? Math.max(0, digits - 1 - Math.floor(Math.log10(size))) : 0;
  return value.toFixed(decimals).replace("-", "−");
}

export const signed = (value) => (value > 0 ? `+${number(value)}` : number(value));

/** 0.6712 -> 67%, never 0% or 100%, of which nothing is sure. */
export function percent(value) {
  if (value > 0.995) return "over 99%";
  return value < 0.005 ? "under 1%" : `${Math.round(100 * value)}%`;
}

/** Why a request brought no answer, in one sentence. */
export class Trouble extends Error {
  constructor(message, status = 0, wait = 0) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const KEY = "penchant-key";
let asking = null;

/** The key from whoever sits at the page, asked for once however many requests want it. */
function askForKey() {
  asking ??= new Promise((resolve) => {
    const form = byId("key");
    const text = byId("key-text");
    const refused = sessionStorage.getItem(KEY) !== null;
    sessionStorage.removeItem(KEY);
    if (refused) tell("The server does not know that key; type another.");
    form.hidden = false;
    text.focus();
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, text.value.trim());
      text.value = "";
      form.hidden = true;
      tell("");
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

/** The JSON of an answer; throws Trouble. The path is relative, so that a proxy may put the page anywhere. */
export async function ask(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key === null ? {} : { Authorization: `Bearer ${/^[!-~]+$/.test(key) ? key : "none"}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, {
        method: body === undefined ? "GET" : "POST", headers, signal, credentials: "same-origin",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Trouble("The server cannot be reached; see whether it runs, then try again.");
    }
    if (answer.status === 401) {
      await askForKey();
      continue;
    }
    const found = await answer.json().catch(() => null);
    if (answer.ok && found !== null) return found;
    const wait = Number(answer.headers.get("Retry-After")) || 0;
    if (answer.status === 429) throw new Trouble(`The server is busy; try again in ${wait || 1} s.`, 429, wait || 1);
    const message = found?.error?.message;
    throw new Trouble(message ? sentence(message) : `The server answered ${answer.status} without saying why.`, answer.status, wait);
  }
}

export const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, 1000 * seconds);
  signal?.addEventListener("abort", () => {
    clearTimeout(timer);
    reject(signal.reason);
  }, { once: true });
});

/** What takes the server long: asked again until it is there, and every ten seconds it is said how long it took. */
export async function found(path, waiting) {
  for (let seconds = 0; ; seconds += 1) {
    if (seconds && seconds % 10 === 0) waiting(seconds);
    const answer = await ask(path).catch((error) => {
      if (error.status === 429) return { found: null };
      throw error;
    });
    if (answer.found !== null) return answer.found;
    await pause(1);
  }
}

/** A sentence in a place for it; `bad` when it tells of trouble. */
export function say(id, text, bad = false) {
  const place = byId(id);
  place.textContent = visible(text);
  place.classList.toggle("bad", bad);
}

/** A sentence above everything; none hides it. */
export function tell(text) {
  byId("trouble").textContent = visible(text);
  byId("trouble").hidden = !text;
}

/** A box with a text, as the reports have it. */
export const textBox = (label, ...children) => make("div", {},
  make("h3", {}, label),
  make("div", { className: "text", dir: "auto", tabIndex: 0, role: "region", "aria-label": label }, ...children));

/** A table whose first column names the row. Cells are texts or elements. */
export function table(caption, header, rows) {
  const line = (cells) => make("tr", {}, cells.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, cell)));
  return make("div", { className: "scroll", role: "region", "aria-label": caption, tabIndex: 0 },
    make("table", { className: "reasons" }, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, header.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows.map(line))));
}
