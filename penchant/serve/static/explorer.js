// The page: what is served, its tabs, and whose taste counts.

import { browse } from "./browse.js";
import { comparing } from "./compare.js";
import { scoring } from "./file.js";
import { ask, byId, count, make, say, tell } from "./page.js";

export const taste = { person: null };

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(name) {
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
  browse(name);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const there = tabs.filter((one) => !one.hidden);
    const at = there.indexOf(tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + there.length, Home: 0, End: there.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    there[to % there.length].focus();
    show(there[to % there.length].getAttribute("aria-controls"));
  });
}

// Whose taste

const search = byId("person-search");
const list = byId("person-list");
let looked = 0;
let timer = 0;

export function choose(person) {
  taste.person = person;
  search.value = person ?? "";
  byId("person-clear").hidden = person === null;
  close();
  say("person-says", person === null ? "" : `Scores are shown in the taste of ${person}, beside everybody’s.`);
}

function close() {
  list.hidden = true;
  search.setAttribute("aria-expanded", "false");
  search.removeAttribute("aria-activedescendant");
}

/** People whose names begin with what was typed; never the whole list. */
async function look() {
  const number = ++looked;
  const answer = await ask(`explore/people?prefix=${encodeURIComponent(search.value)}`).catch((error) => error);
  if (number !== looked) return;
  if (answer instanceof Error) {
    say("person-says", answer.message, true);
    return;
  }
  list.replaceChildren(...answer.people.map((name, i) =>
    make("li", { role: "option", id: `person-${i}`, "aria-selected": "false" }, name)));
  [...list.children].forEach((item, i) => item.addEventListener("mousedown", (event) => {
    event.preventDefault();
    choose(answer.people[i]);
  }));
  list.people = answer.people;
  list.hidden = !answer.people.length;
  search.setAttribute("aria-expanded", String(!list.hidden));
  const more = answer.more ? "The first of many; type more of the name." : "";
  say("person-says", answer.people.length ? more : "Nobody’s name begins so.");
}

search.addEventListener("input", () => {
  taste.person = null;
  byId("person-clear").hidden = true;
  clearTimeout(timer);
  timer = setTimeout(look, 200);
});
search.addEventListener("focus", () => taste.person ?? look());
search.addEventListener("blur", () => {
  clearTimeout(timer);
  looked += 1;
  choose(taste.person);
});
search.addEventListener("keydown", (event) => {
  const items = [...list.children];
  const at = items.findIndex((item) => item.getAttribute("aria-selected") === "true");
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && items.length && !list.hidden) {
    event.preventDefault();
    const to = (at + (event.key === "ArrowDown" ? 1 : at < 0 ? 0 : -1) + items.length) % items.length;
    items.forEach((item, i) => item.setAttribute("aria-selected", String(i === to)));
    items[to].scrollIntoView({ block: "nearest" });
    search.setAttribute("aria-activedescendant", items[to].id);
  } else if (event.key === "Enter" && !list.hidden) {
    event.preventDefault();
    if (at >= 0) choose(list.people[at]);
    else if (list.people.includes(search.value)) choose(search.value);
  } else if (event.key === "Escape") {
    choose(null);
  }
});
byId("person-clear").addEventListener("click", () => {
  choose(null);
  search.focus();
});

/** Go to the two answers with a person chosen. */
export function compareAs(person) {
  choose(person);
  show("compare");
  byId("ask").focus();
}

// What is served

async function start() {
  const model = await ask("explore/model");
  document.title = `${model.name} – Penchant explorer`;
  byId("about").textContent = "";
  byId("about").append(make("b", {}, model.name), `: a reward model (head “${model.head}”) on the frozen LLM `,
    make("bdi", {}, model.backbone), `. ${model.reads}`);
  byId("foot").append(`Texts go to this server alone. At most ${count(model.max_length)} tokens of a prompt with its answer`
    + " are read; of longer ones the start is cut.");
  byId("tab-features").hidden = !model.features;
  byId("tab-codes").hidden = !model.codes;
  byId("tab-people").hidden = byId("person-box").hidden = !(model.personal && model.people);
  byId("people-about").textContent = `${count(model.people)} ${model.people === 1 ? "person is" : "people are"} known,`
    + " each by a taste of their own, fitted from pairs they judged. Search by name.";
  comparing(model);
  scoring(model);
}

start().catch((error) => tell(error.message));
