// A file of lines, scored through the API chunk by chunk, as a table.

import { taste } from "./explorer.js";
import { ask, byId, count, make, number, pause, percent, say, visible } from "./page.js";
import { asText, csv, linesOf, readLine, scoredRow } from "./rows.js";

const CHUNK = 32;
const CHUNK_CHARACTERS = 60_000;
const SHOWN = 200;
const LISTED = 100;
const CELL = 300;
let model = null;
let running = null;
let done = [];
let bad = [];
let order = { column: null, descending: false };

export function scoring(served) {
  model = served;
  const choose = byId("choose");
  choose.disabled = false;
  choose.addEventListener("change", () => {
    if (choose.files.length) score(choose.files[0]);
    choose.value = "";
  });
  const drop = byId("drop");
  for (const type of ["dragenter", "dragover"]) {
    drop.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) score(event.dataTransfer.files[0]);
  });
  for (const type of ["dragover", "drop"]) window.addEventListener(type, (event) => event.preventDefault());
  byId("stop").addEventListener("click", () => running?.abort());
  byId("save-jsonl").addEventListener("click", () => save("scored.jsonl", "application/jsonl", done.map((one) => `${JSON.stringify(one.scored)}\n`).join("")));
  byId("save-csv").addEventListener("click", () => save("scored.csv", "text/csv", csv(done.map((one) => one.scored))));
}

/** Read, score and show one file; what was scored stays when it is stopped or the server fails. */
async function score(file) {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  [done, bad, order] = [[], [], { column: null, descending: false }];
  byId("running").hidden = false;
  byId("table").hidden = byId("bad").hidden = true;
  say("file-said", "");
  const person = taste.person;
  let read = 0;
  let end = "";
  try {
    let [chunk, size, numbered] = [[], 0, 0];
    for await (const line of linesOf(file.stream())) {
      numbered += 1;
      read += line.length + 1;
      signal.throwIfAborted();
      if (!line.trim()) continue;
      try {
        const item = readLine(numbered, numbered === 1 ? line.replace(/^\uFEFF/, "") : line);
        chunk.push(item);
        size += line.length;
      } catch (error) {
        refuse(numbered, error.message);
      }
      if (chunk.length >= CHUNK || size >= CHUNK_CHARACTERS) {
        await scored(chunk, person, signal);
        progress(read / Math.max(1, file.size), file.name);
        [chunk, size] = [[], 0];
      }
    }
    await scored(chunk, person, signal);
  } catch (error) {
    if (signal !== running.signal) return;
    end = signal.aborted ? "Stopped; what was scored is below." : `${error.message} What was scored is below.`;
  }
  if (signal !== running.signal) return;
  byId("running").hidden = true;
  const whose = person === null ? "" : ` in the taste of ${person}`;
  const left = bad.length ? `, ${count(bad.length)} ${bad.length === 1 ? "line" : "lines"} left out` : "";
  say("file-said", `${end ? `${end} ` : ""}${count(done.length)} ${done.length === 1 ? "row" : "rows"} of ${file.name} scored${whose}${left}.`, Boolean(end));
  draw();
}

/** Scores of a chunk; a row that the server refuses is found by asking for each alone. */
async function scored(chunk, person, signal) {
  if (!chunk.length) return;
  const body = { prompts: chunk.flatMap((one) => one.answers.map(() => one.prompt)), responses: chunk.flatMap((one) => one.answers) };
  if (person !== null) body.user_id = person;
  let scores;
  try {
    ({ scores } = await patiently(body, signal));
  } catch (error) {
    if (![400, 413, 422].includes(error.status)) throw error;
    if (chunk.length === 1) refuse(chunk[0].number, error.message);
    else for (const one of chunk) await scored([one], person, signal);
    return;
  }
  let at = 0;
  for (const one of chunk) {
    const own = scores.slice(at, at += one.answers.length);
    done.push({ ...one, scores: own, scored: scoredRow(one, own, model.temperature) });
  }
}

/** Ask again while the server is busy. */
async function patiently(body, signal) {
  for (;;) {
    try {
      return await ask("score", body, signal);
    } catch (error) {
      if (error.status !== 429) throw error;
      say("file-said", `The server is busy; going on in ${error.wait} s.`);
      await pause(error.wait, signal);
      say("file-said", "");
    }
  }
}

function refuse(line, why) {
  bad.push({ line, why });
  const items = byId("bad-lines");
  if (bad.length === 1) items.replaceChildren();
  if (bad.length <= LISTED) items.append(make("li", {}, `Line ${count(line)}: ${why.replace(/\.$/, "")}.`));
  byId("bad").hidden = false;
  const more = bad.length > LISTED ? `; the first ${LISTED} are listed` : "";
  byId("bad-title").textContent = `${count(bad.length)} ${bad.length === 1 ? "line was" : "lines were"} left out${more}`;
}

function progress(share, name) {
  byId("bar").value = share;
  byId("running-says").textContent = visible(`Scoring ${name}: ${count(done.length)} rows, ${Math.round(100 * Math.min(1, share))}% of the file`);
}

// The table

const SCORES = {
  response: [["Score", (one) => one.scores[0]]],
  pair: [["Chosen", (one) => one.scores[0]], ["Rejected", (one) => one.scores[1]], ["Chosen wins", (one) => one.scored.probability, percent]],
  responses: [["Best", (one) => Math.max(...one.scores)], ["Worst", (one) => Math.min(...one.scores)]],
};
const TEXTS = {
  response: [["Response", (one) => asText(one.answers[0])]],
  pair: [["Chosen text", (one) => asText(one.answers[0])], ["Rejected text", (one) => asText(one.answers[1])]],
  responses: [["Best response", (one) => asText(one.answers[one.scores.indexOf(Math.max(...one.scores))])]],
};

function columns() {
  const kinds = ["response", "pair", "responses"].filter((kind) => done.some((one) => one.kind === kind));
  const of = (sets, figure) => kinds.flatMap((kind) => sets[kind].map(([name, value, show = number]) =>
    ({ name, figure, show: figure ? show : String, value: (one) => (one.kind === kind ? value(one) : undefined) })));
  return [{ name: "Line", figure: true, show: count, value: (one) => one.number }, ...of(SCORES, true),
    { name: "Prompt", figure: false, show: String, value: (one) => asText(one.prompt) }, ...of(TEXTS, false)];
}

function draw() {
  byId("table").hidden = !done.length;
  if (!done.length) return;
  const all = columns();
  byId("columns").replaceChildren(...all.map((column) => {
    const here = order.column === column.name;
    const button = make("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      order = { column: column.name, descending: here ? !order.descending : column.figure && column.name !== "Line" };
      draw();
      [...byId("columns").querySelectorAll("button")].find((one) => one.textContent === column.name)?.focus();
    });
    return make("th", { scope: "col", className: column.figure ? "figure" : "",
      "aria-sort": here ? (order.descending ? "descending" : "ascending") : "none" }, button);
  }));
  const by = all.find((column) => column.name === order.column);
  const sorted = by ? [...done].sort((a, b) => compare(by.value(a), by.value(b), order.descending)) : done;
  byId("rows").replaceChildren(...sorted.slice(0, SHOWN).map((one) => make("tr", {}, all.map((column) => {
    const value = column.value(one);
    if (column.figure) return make("td", { className: "figure" }, value === undefined ? "" : column.show(value));
    return make("td", {}, make("span", { className: "words", dir: "auto", title: value === undefined ? "" : visible(value, CELL) },
      value === undefined ? "" : visible(value, CELL)));
  }))));
  const some = done.length > SHOWN ? `the first ${count(SHOWN)} of ${count(done.length)} rows; the downloads hold all` : `${count(done.length)} rows`;
  byId("shown").textContent = `${some.charAt(0).toUpperCase()}${some.slice(1)}`;
}

function compare(a, b, descending) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const way = typeof a === "string" ? a.localeCompare(b) : a - b;
  return descending ? -way : way;
}

function save(name, type, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
