// Two answers to one prompt: scores, probability, what speaks for each, and the words that count.

import { taste } from "./explorer.js";
import { ask, bdi, byId, count, make, number, percent, place, say, signed, table, textBox } from "./page.js";

const SIDES = { first: "First answer", second: "Second answer" };
const LEVELS = 4;
let model = null;
let running = null;

/** Begin: the example is filled in where nothing was typed yet. */
export function comparing(served) {
  model = served;
  const fields = ["prompt", "first", "second"];
  if (fields.every((name) => !byId(name).value)) for (const name of fields) byId(name).value = model.example[name];
  byId("ask").disabled = false;
  say("said", "This is an example: compare it, or type your own.");
  byId("pair").addEventListener("submit", (event) => {
    event.preventDefault();
    compare();
  });
  byId("pair").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) compare();
  });
  byId("swap").addEventListener("click", () => {
    [byId("first").value, byId("second").value] = [byId("second").value, byId("first").value];
    say("said", "Swapped; compare again.");
  });
}

async function compare() {
  const pair = { prompt: byId("prompt").value, first: byId("first").value, second: byId("second").value };
  for (const name of ["prompt", "first", "second"]) {
    if (!pair[name].trim()) {
      say("said", `The ${name === "prompt" ? name : `${name} answer`} is empty; type one.`, true);
      byId(name).focus();
      return;
    }
  }
  if (taste.person !== null) pair.user_id = taste.person;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  byId("ask").disabled = true;
  byId("said").classList.remove("done");
  say("said", "Scoring …");
  try {
    const answer = await ask("explore/compare", pair, signal);
    verdict(answer, pair);
    say("said", `${spoken(answer.person ?? answer.everybody)} Looking for what speaks for each …`);
    byId("ask").disabled = false;
    await why(pair, signal);
    say("said", spoken(answer.person ?? answer.everybody));
    byId("said").classList.add("done"); // the sentence stands below; who cannot see hears it from here
  } catch (error) {
    if (error.name !== "AbortError") say("said", error.message, true);
  } finally {
    if (!signal.aborted) byId("ask").disabled = false;
  }
}

/** The judgement in a sentence. */
function spoken({ probability }) {
  if (Math.abs(probability - 0.5) < 0.005) return "Neither answer is clearly better: 50%.";
  const [side, sure] = probability > 0.5 ? ["first", probability] : ["second", 1 - probability];
  return `The ${side} answer is better with a probability of ${percent(sure)}.`;
}

function verdict(answer, pair) {
  const tastes = answer.person === null ? [[null, answer.everybody]]
    : [[`In the taste of ${pair.user_id}`, answer.person], ["In everybody’s taste", answer.everybody]];
  byId("verdict").replaceChildren(...tastes.map(([title, judged]) => {
    const bar = make("span");
    bar.style.width = `${100 * judged.probability}%`;
    const end = (name, score, share) => make("span", {}, make("b", {}, percent(share)), ` ${SIDES[name].toLowerCase()}`,
      make("small", {}, `score ${number(score)}`));
    return make("div", { className: "taste" }, title === null ? [] : make("h3", {}, title),
      make("p", { className: "sentence" }, spoken(judged)),
      make("div", { className: "bar", "aria-hidden": "true" }, bar),
      make("p", { className: "ends" }, end("first", judged.scores[0], judged.probability),
        end("second", judged.scores[1], 1 - judged.probability)));
  }));
  if (answer.person !== null) {
    const differ = (answer.person.probability > 0.5) !== (answer.everybody.probability > 0.5);
    byId("verdict").append(make("p", { className: "said" }, differ ? "They prefer different answers." : "Both prefer the same answer."));
  }
  byId("result").hidden = false;
}

async function why(pair, signal) {
  const old = [byId("speaks"), byId("shaded"), byId("choices"), byId("shade-says"), byId("shade-key")];
  for (const part of old) part.replaceChildren();
  byId("shades").hidden = true;
  byId("why").hidden = false;
  byId("shade-says").textContent = "Leaving out words, one after the other, and scoring what remains …";
  const asked = ask("explore/words", pair, signal);
  asked.catch(() => {}); // told below, where it is waited for
  const reasons = await ask("explore/reasons", pair, signal);
  const choices = [];
  if (reasons.features) choices.push(...features(reasons.features));
  else if (reasons.codes) codes(reasons.codes);
  else {
    byId("speaks").replaceChildren(make("p", {}, `This model’s head (“${model.head}”) scores the LLM’s states directly and has no named`
      + " features, so what can be shown is which words count."));
  }
  const words = await asked;
  choices.unshift({ name: "words left out", draw: () => byWords(words, pair) });
  byId("choices").replaceChildren(...choices.map((choice, i) => {
    const button = make("input", { type: "radio", name: "shade", checked: i === 0 });
    button.addEventListener("change", choice.draw);
    return make("label", {}, button, make("span", {}, bdi(choice.name)));
  }));
  byId("shades").hidden = choices.length < 2;
  choices[0].draw();
}

/** Words shaded by the score with them less the score without them. */
function byWords(words, pair) {
  const all = Object.values(words).flatMap((side) => side.worth.map(Math.abs));
  const most = Math.max(...all, 1e-12);
  const whose = pair.user_id === undefined ? "" : ` in the taste of ${pair.user_id}`;
  byId("shade-says").textContent = `Each word or phrase was left out in turn and the answer scored again${whose}: the shade shows`
    + " how much higher or lower the score is with it. Both answers share one scale; words of a long answer are taken together.";
  key([["up", "raises its answer’s score"], ["down", "lowers it"]]);
  byId("shaded").replaceChildren(...Object.entries(SIDES).map(([side, label]) => {
    const { pieces, worth } = words[side];
    if (!worth.length) return textBox(`${label} (one word; nothing can be left out)`, pieces.join(""));
    return textBox(label, ...pieces.flatMap((piece, i) =>
      marked(piece, Math.abs(worth[i]) / most, worth[i] < 0 ? "down" : "up", `${signed(worth[i])} by “${visibleWord(piece)}”`)));
  }));
}

const visibleWord = (piece) => piece.trim() || "white space";

/** A piece of text with a shade of 0 to 4, white space around it left alone. */
function marked(piece, share, style, title) {
  const level = share > 0.05 ? Math.min(LEVELS, 1 + Math.floor(LEVELS * share)) : 0;
  const word = piece.trim();
  if (!level || !word) return [piece];
  const at = piece.indexOf(word);
  return [piece.slice(0, at), make("mark", { className: `${style}${level}`, title }, word), piece.slice(at + word.length)];
}

function key(styles) {
  byId("shade-key").replaceChildren(...styles.map(([style, says]) => {
    const [verb, sign] = style === "up" ? ["raises", "▲"] : ["lowers", "▼"];
    return make("span", {}, make("mark", { className: `${style}2` }, "some"), " ", make("mark", { className: `${style}4` }, "much"), " ",
      make("span", { className: verb }, `${sign} ${says}`));
  }));
}

/** Which features speak for each answer; a way of shading for each. */
function features(found) {
  const name = (one) => one.name ?? `feature ${one.feature}`;
  const listed = found.features;
  const speaks = byId("speaks");
  if (!listed.length) {
    speaks.replaceChildren(make("p", {}, "No feature tells these two answers apart."));
    return [];
  }
  const cell = (value) => make("span", { className: value < 0 ? "lowers" : value > 0 ? "raises" : "" },
    value ? `${value < 0 ? "▼" : "▲"} ${signed(value)}` : "0");
  const rows = (wanted) => wanted.map((one) => [
    make("span", {}, bdi(name(one)), make("span", { className: "meta" }, ` ${one.name ? `${one.feature} · ` : ""}${place(one.view)}`)),
    cell(one.first), cell(one.second), signed(one.difference)]);
  const header = ["Feature", "First", "Second", "Difference"];
  const parts = [["first", 1], ["second", -1]].flatMap(([side, sign]) => {
    const own = listed.filter((one) => sign * one.difference > 0);
    const title = `Features that speak for the ${side} answer`;
    return own.length ? [table(title, header, rows(own))] : [make("p", {}, `No feature speaks for the ${side} answer.`)];
  });
  const others = found.others.features;
  const rest = [others ? `${count(others)} weaker features add ${signed(found.others.difference)} to the difference.` : "",
    found.additive ? "" : "This head is no sum of features, so the parts are approximate."];
  speaks.replaceChildren(...parts, make("p", { className: "hint" }, "What each feature adds to an answer’s score. ", rest.filter(Boolean).join(" "),
    listed.some((one) => one.name) ? "" : " Features get names on the tab Features, which reads some texts for it."));
  const seen = new Set();
  const called = new Map();
  for (const one of listed) called.set(name(one), new Set([...(called.get(name(one)) ?? []), one.feature]));
  const own = (one) => (called.get(name(one)).size > 1 ? `${name(one)} (${one.feature})` : name(one));
  return listed.filter((one) => !seen.has(one.feature) && seen.add(one.feature)).slice(0, 6)
    .map((one) => ({ name: own(one), draw: () => byFeature(one, found.texts, name(one)) }));
}

/** Tokens shaded by how active one feature is at them. */
function byFeature(one, texts, name) {
  const active = (side) => new Map(texts[side]?.activations[one.feature] ?? []);
  const most = Math.max(...Object.keys(texts).flatMap((side) => [...active(side).values()]), 1e-12);
  const style = one.weight !== null && one.weight < 0 ? "down" : "up";
  byId("shade-says").textContent = `How active “${name}” is at each token; it says where the feature reacts, not what the`
    + " token adds to the score.";
  key([[style, style === "up" ? "this feature raises scores" : "this feature lowers scores"]]);
  const boxes = Object.entries({ prompt: "Prompt", ...SIDES }).filter(([side]) => texts[side]);
  byId("shaded").replaceChildren(...boxes.map(([side, label]) => {
    const values = active(side);
    const box = textBox(label, ...texts[side].pieces.flatMap((piece, i) => {
      const value = values.get(i) ?? 0;
      if (texts[side].content[i]) return marked(piece, value && Math.max(value / most, 0.06), style, number(value));
      return value ? [make("mark", { className: `${style}${Math.min(LEVELS, 1 + Math.floor(LEVELS * value / most))} dim`, title: number(value) },
        piece.trim() || "⏎"), " "] : [];
    }));
    if (side === "prompt") box.className = "wide";
    return box;
  }));
}

/** What each code says, and how much it counts here. */
function codes(found) {
  const rows = found.map((one) => [bdi(one.name), percent(one.weight.first), number(one.score.first),
    percent(one.weight.second), number(one.score.second)]);
  byId("speaks").replaceChildren(
    table("Codes: several tastes, and how much each counts", ["Code", "Counts (first)", "Its score", "Counts (second)", "Its score"], rows),
    make("p", { className: "hint" }, "An answer’s score is the sum of the codes’ scores, each times how much the code counts."));
}
