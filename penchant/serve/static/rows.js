// Lines of a file: what each asks to be scored, and what is written of it. No page here.

/** One line as {number, row, prompt, answers, kind}; throws a sentence. */
export function readLine(number, line) {
  let row;
  try {
    row = JSON.parse(line);
  } catch {
    throw new Error("it is not JSON");
  }
  if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error("it is no JSON object");
  const kind = "responses" in row ? "responses" : "chosen" in row || "rejected" in row ? "pair" : "response";
  if (!("prompt" in row)) throw new Error("it has no prompt");
  const answers = kind === "pair" ? [row.chosen, row.rejected] : kind === "responses" ? row.responses : [row.response];
  if (!Array.isArray(answers) || !answers.length) throw new Error("its responses are no list of texts");
  check("prompt", row.prompt, false);
  const names = kind === "pair" ? ["chosen", "rejected"] : answers.map(() => "response");
  answers.forEach((answer, i) => check(names[i], answer, true));
  return { number, row, prompt: row.prompt, answers, kind };
}

function check(name, value, needed) {
  if (value === undefined || value === null) throw new Error(`it has no ${name}`);
  const messages = Array.isArray(value) && value.length > 0
    && value.every((one) => one !== null && typeof one === "object" && typeof one.role === "string" && typeof one.content === "string");
  if (typeof value !== "string" && !messages) throw new Error(`its ${name} is neither a text nor a list of messages`);
  if (needed && !asText(value).trim()) throw new Error(`its ${name} is empty`);
}

/** A text, or messages, to look at. */
export const asText = (value) => (typeof value === "string" ? value : value.map((one) => `${one.role}: ${one.content}`).join("\n"));

/** The line with its scores, as `penchant score` names them. */
export function scoredRow({ row, kind }, scores, temperature) {
  if (kind === "response") return { ...row, score: scores[0] };
  if (kind === "responses") return { ...row, scores };
  const probability = 1 / (1 + Math.exp((scores[1] - scores[0]) / temperature));
  return { ...row, chosen_score: scores[0], rejected_score: scores[1], probability };
}

/** Lines of a stream of text, the last one with or without its end. */
export async function* linesOf(stream) {
  let rest = "";
  for await (const part of parts(stream.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + part).split(/\r?\n/);
    rest = lines.pop();
    yield* lines;
  }
  if (rest) yield rest;
}

async function* parts(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it. */
export function csv(rows) {
  const columns = [...new Set(rows.flatMap(Object.keys))];
  const cell = (value) => {
    if (value === undefined || value === null) return "";
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}
