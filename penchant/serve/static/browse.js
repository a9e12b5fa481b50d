// Features, codes and people, each read when its tab is first opened.

import { compareAs } from "./explorer.js";
import { ask, bdi, byId, count, found, make, number, percent, place, say, table, textBox } from "./page.js";

const LEVELS = 4;
const opened = new Set();
const READING = "Reading demo pairs; the first time this can take a minute …";

/** Fill a tab when it is first shown; again where that failed. */
export async function browse(name) {
  const fill = { features, codes, people }[name];
  if (!fill || opened.has(name)) return;
  opened.add(name);
  say(`${name}-said`, name === "people" ? "" : READING);
  try {
    await fill();
  } catch (error) {
    opened.delete(name);
    say(`${name}-said`, error.message, true);
  }
}

const waiting = (id) => (seconds) => say(id, `${READING} ${seconds} s so far.`);

// Features

async function features() {
  const all = await found("explore/features", waiting("features-said"));
  const shown = all.features;
  const named = (one) => all.latents[one.feature].name || `feature ${one.feature}`;
  const first = new Map(shown.toReversed().map((one) => [one.feature, one]));
  const most = Math.max(...shown.map((one) => one.share));
  const rows = shown.map((one) => {
    const bar = make("span", { className: "weight", "aria-hidden": "true" });
    bar.style.width = `${4 * one.share / most}rem`;
    const lowers = (one.weight ?? 0) < 0;
    return [make("span", {}, bdi(named(one)), make("span", { className: "meta" }, `${one.feature} · ${place(one.view)}`)),
      make("span", {}, percent(one.share), bar),
      make("span", { className: lowers ? "lowers" : "raises" }, lowers ? "▼ lowers" : "▲ raises"),
      percent(one.chosen), percent(one.rejected)];
  });
  const rest = all.others.features ? ` ${count(all.others.features)} weaker features share ${percent(all.others.share)}.` : "";
  byId("features-found").replaceChildren(
    table("Strongest features", ["Feature", "Share of the score", "The score", "In chosen", "In rejected"], rows),
    make("p", { className: "hint" }, `Share: how much of the differences between scores it makes up. In chosen, in rejected: how often`
      + ` it is active there.${rest}`),
    make("h3", {}, "What they react to"),
    ...[...first.values()].sort((a, b) => b.share - a.share).map((one, i) => block(all.latents[one.feature], one, named(one), i === 0)));
  say("features-said", `${count(shown.length)} features, read on ${count(all.pairs)} demo pairs.`);
}

/** Words and examples of one feature, closed until asked for. */
function block(latent, one, name, open) {
  const [verb, sign, style] = (one.weight ?? 0) < 0 ? ["lowers", "▼", "down"] : ["raises", "▲", "up"];
  const most = Math.max(...latent.examples.flatMap((example) => example.activations), 1e-12);
  return make("details", { open },
    make("summary", {}, make("span", { className: verb }, sign), " ", bdi(name),
      make("span", { className: "meta" }, `${verb} the score · active at ${percent(latent.share)} of tokens`)),
    make("ul", { className: "words" }, latent.tokens.map((token) =>
      make("li", {}, bdi(token.text), " ", make("span", {}, `${number(token.mean, 2)} × ${count(token.count)}`)))),
    make("ol", { className: "examples" }, latent.examples.map((example) =>
      make("li", {}, make("div", { className: "text", dir: "auto" }, example.cut[0] ? "… " : "", ...shaded(example, style, most), example.cut[1] ? " …" : "")))));
}

function shaded({ pieces, content, activations, peak }, style, most) {
  return pieces.flatMap((piece, i) => {
    if (!(activations[i] > 0)) return content[i] ? [piece] : [make("span", { className: "dim" }, `${piece.trim()} `)];
    const word = piece.trim() || "⏎";
    const level = Math.min(LEVELS, 1 + Math.floor(LEVELS * activations[i] / most));
    const mark = make("mark", { className: `${style}${level}${i === peak ? " peak" : ""}`, title: number(activations[i]) }, word);
    return [piece.slice(0, piece.length - piece.trimStart().length), mark, piece.trim() ? piece.slice(piece.trimEnd().length) : ""];
  });
}

// Codes

async function codes() {
  const all = await found("explore/codes", waiting("codes-said"));
  const rows = all.map((one) => [bdi(one.name), percent(one.weight), percent(one.agrees)]);
  byId("codes-found").replaceChildren(
    table("Codes", ["Code", "Counts, in the mean", "Orders pairs as all together"], rows),
    ...all.flatMap((one, i) => make("details", { open: i === 0 },
      make("summary", {}, bdi(one.name), make("span", { className: "meta" }, "prompts that call for it most, and what it prefers")),
      one.pairs.map((pair) => make("div", {}, make("h3", {}, `Prompt (it counts ${percent(pair.weight)})`), make("p", { dir: "auto" }, pair.prompt),
        make("div", { className: "answers" }, textBox("It prefers", pair.better), textBox("to", pair.worse)))))));
  const alike = all.every((one) => one.agrees > 0.97);
  say("codes-said", `${count(all.length)} codes${alike ? ", which order nearly all of these pairs alike: this model has found one taste, not several" : ""}.`);
}

// People

let last = "";
let prefix = "";
let chosen = null;

async function people() {
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    prefix = byId("prefix").value;
    last = "";
    list(true);
  });
  byId("people-more").addEventListener("click", () => list(false));
  byId("person-use").addEventListener("click", () => compareAs(chosen));
}

async function list(anew) {
  try {
    const answer = await ask(`explore/people?prefix=${encodeURIComponent(prefix)}&after=${encodeURIComponent(last)}`);
    const items = answer.people.map((name) => {
      const button = make("button", { type: "button" }, bdi(name));
      button.addEventListener("click", () => person(name));
      return make("li", {}, button);
    });
    if (anew) byId("people-found").replaceChildren(...items);
    else byId("people-found").append(...items);
    if (!anew) items[0]?.firstChild.focus();
    last = answer.people.at(-1) ?? last;
    byId("people-more").hidden = !answer.more;
    const shown = byId("people-found").children.length;
    say("people-said", shown ? `${count(shown)} ${shown === 1 ? "person" : "people"}${answer.more ? ", and there are more" : ""}.` : "Nobody’s name begins so.");
  } catch (error) {
    say("people-said", error.message, true);
  }
}

async function person(name) {
  chosen = name;
  byId("person-title").textContent = "";
  byId("person-title").append(bdi(name));
  byId("person-found").replaceChildren();
  byId("person").hidden = false;
  byId("person-title").focus();
  say("person-said", READING);
  try {
    const one = await found(`explore/person?user_id=${encodeURIComponent(name)}`, (seconds) => name === chosen && waiting("person-said")(seconds));
    if (name !== chosen) return;
    say("person-said", `Of ${count(one.pairs)} demo pairs (simulated, with Penchant), this taste orders ${count(one.agrees)} as everybody’s does.`);
    byId("person-found").replaceChildren(make("h3", {}, "Where they differ most"), ...one.differ.map((pair) =>
      make("details", {},
        make("summary", {}, bdi(pair.prompt), make("span", { className: "meta" },
          `the first answer is better: ${percent(pair.person)} in this taste, ${percent(pair.everybody)} in everybody’s`)),
        make("div", { className: "answers" }, textBox("First answer", pair.first), textBox("Second answer", pair.second)))));
  } catch (error) {
    if (name === chosen) say("person-said", error.message, true);
  }
}
