// What a choice of vectors costs: bytes, time, and how far the similarities move from those of the full vectors.

import { isAbort } from "./api.js";
import { allChoices } from "./choices.js";
import { byId, bytes, decimals, element, plural, say } from "./dom.js";
import { showError } from "./key.js";
import { meanDifference, median, spearman } from "./statistics.js";
import { embed, pairs } from "./vectors.js";

const RUNS = 5;

let about = null; // the texts and the input type of the rows
let rows = new Map();
let running = new AbortController();
let isSweeping = false;

const nameOf = (choice) => `${choice.dimensions} ${choice.layer ?? "all"} ${choice.dtype} ${choice.indexVersion ?? ""}`;
const full = (model) => ({ dimensions: model.dimensions[0], layer: null, dtype: "float" });

/** Measures a choice that the user tries, beside those that were tried before on the same texts. */
export async function addChoice(model, texts, choice) {
  if (isSweeping && about === aboutOf(texts, choice)) return; // it is measured with all others
  await run(model, texts, choice, [full(model), choice]);
}

/** Measures everything that the model offers. */
export async function measureAll(model, texts, choice) {
  await run(model, texts, choice, allChoices(model));
}

/** Stops a measurement; its rows stay. */
export function stopMeasuring() {
  running.abort();
}

export function clearCost() {
  running.abort();
  about = null;
  byId("cost-frame").hidden = true;
  say(byId("cost-note"), "");
  say(byId("cost-status"), "");
}

const aboutOf = (texts, { inputType }) => JSON.stringify([texts, inputType]);

async function run(model, texts, current, choices) {
  running.abort();
  const { signal } = (running = new AbortController());
  if (about !== aboutOf(texts, current)) [about, rows] = [aboutOf(texts, current), new Map()];
  const missing = choices.filter((choice) => (rows.get(nameOf(choice))?.times.length ?? 0) < RUNS);
  showRunning(true, choices.length > 2);
  say(byId("cost-problem"), "");
  try {
    await measure(model, texts, current, missing, signal);
    if (rows.size > 0) draw(model, texts, current);
    say(byId("cost-status"), `${plural(rows.size, "choice")} measured.`);
  } catch (error) {
    if (!isAbort(error)) showError(byId("cost-problem"), error);
    else if (running.signal === signal) say(byId("cost-status"), `Stopped with ${plural(rows.size, "choice")}.`);
  } finally {
    if (running.signal === signal) showRunning(false, false);
  }
}

function showRunning(isOn, isSweep) {
  const [button, stop] = [byId("measure"), byId("measure-stop")];
  const hasFocus = document.activeElement === stop;
  isSweeping = isSweep;
  button.disabled = isOn && isSweep;
  if (isSweep) {
    stop.hidden = false;
    stop.focus();
  } else {
    if (hasFocus) button.focus();
    stop.hidden = true;
  }
}

/** Measures choices in turns, so that a busy minute of the machine hits them alike. */
async function measure(model, texts, current, choices, signal) {
  for (let turn = 1; turn <= RUNS; turn += 1) {
    for (const choice of choices) {
      const name = nameOf(choice);
      if ((rows.get(name)?.times.length ?? 0) >= turn) continue; // the full vectors may be the choice itself
      const found = await embed(model.id, texts, { ...choice, inputType: current.inputType }, { signal });
      if (!rows.has(name)) rows.set(name, { choice, times: [], ...measured(found) });
      rows.get(name).times.push(found.milliseconds);
      if (turn === 1) draw(model, texts, current);
    }
    say(byId("cost-status"), `Round ${turn} of ${RUNS}.`);
    if (choices.length > 0) draw(model, texts, current);
  }
}

function measured({ vectors, tokens }) {
  const size = vectors.width * vectors.values.BYTES_PER_ELEMENT;
  return { size, tokens, values: pairs(vectors).map((pair) => pair.value) };
}

const COLUMNS = ["Dimensions", "Layers", "Values", "A vector", "A million", "A request, ms", "Mean change", "Same order"];

function draw(model, texts, current) {
  const reference = rows.get(nameOf(full(model)));
  const heads = COLUMNS.map((text, place) => element("th", { scope: "col", className: place === 1 || place === 2 ? "" : "number" }, text));
  const order = allChoices(model).map(nameOf);
  const placeOf = (row) => {
    const place = order.indexOf(nameOf(row.choice));
    return place < 0 ? order.length : place; // those for another index at the end
  };
  const sorted = [...rows.values()].sort((a, b) => placeOf(a) - placeOf(b));
  const drawn = sorted.map((row) => tableRow(row, reference, nameOf(row.choice) === nameOf(current)));
  byId("cost-table").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...drawn));
  const what = `${plural(texts.length, "text")} with ${plural(reference.tokens, "token")}. Time: median of ${RUNS} requests as this browser measures them.`;
  say(byId("cost-note"), `${what} Mean change: of the similarity of a pair. Same order: Spearman's correlation of the pairs, with those of the full vectors.`);
  byId("cost-frame").hidden = false;
}

function tableRow({ choice, size, times, values }, reference, isCurrent) {
  const milliseconds = median(times);
  const isFull = values === reference.values;
  const order = isFull ? null : spearman(values, reference.values);
  const number = (text) => element("td", { className: "number" }, text);
  const dtype = choice.indexVersion ? `${choice.dtype}, index ${choice.indexVersion}` : choice.dtype;
  const row = element(
    "tr",
    {},
    element("th", { scope: "row", className: "number" }, String(choice.dimensions)),
    element("td", {}, choice.layer === null ? "all" : `first ${choice.layer}`),
    element("td", {}, dtype),
    number(bytes(size)),
    number(bytes(size * 1e6)),
    number(decimals(milliseconds, milliseconds < 10 ? 1 : 0)),
    number(isFull ? "–" : decimals(meanDifference(values, reference.values), 3)),
    number(order === null ? "–" : decimals(order, 3)),
  );
  if (isCurrent) row.setAttribute("aria-current", "true");
  return row;
}
