// Similarities of texts: a heat map that is a table, and the nearest pairs.

import { isAbort } from "./api.js";
import { byId, decimals, element, plural, say } from "./dom.js";
import { paint, paintRamp, scaleOf } from "./heat.js";
import { showError } from "./key.js";
import { embed, pairs, similarity } from "./vectors.js";

export const MAX_TEXTS = 40;
const FIRST_PAIRS = 10;

let running = new AbortController();
let drawn = null;

/** The texts of the list; blank lines are none. */
export const textsOf = (list) => list.split("\n").filter((line) => line.trim() !== "");

/** Encodes the texts and shows them. Returns whether they are shown; undefined where newer ones are on their way. */
export async function showSimilarity(model, texts, choice) {
  running.abort();
  running = new AbortController();
  const [status, problem] = [byId("similarity-status"), byId("similarity-problem")];
  if (texts.length < 2 || texts.length > MAX_TEXTS) {
    const line = `These are ${texts.length} texts. At most ${MAX_TEXTS} are compared: remove ${texts.length - MAX_TEXTS}.`;
    say(problem, texts.length > MAX_TEXTS ? line : "");
    say(status, texts.length < 2 ? "Write two texts or more." : "");
    clear();
    return false;
  }
  say(status, `Encoding ${texts.length} texts.`);
  try {
    const found = await embed(model, texts, choice, { signal: running.signal, onWait: () => say(status, "The server is busy. Waiting.") });
    say(problem, "");
    draw(texts, found.vectors);
    const [best] = drawn.pairs;
    const nearest = `Nearest: ${best.one + 1} and ${best.other + 1}, ${decimals(best.value)}.`;
    say(status, `${plural(texts.length, "text")}, ${plural(found.tokens, "token")}. ${nearest}`);
    return true;
  } catch (error) {
    if (isAbort(error)) return undefined;
    say(status, "");
    clear();
    showError(problem, error);
    return false;
  }
}

function clear() {
  byId("similarity-result").hidden = true;
  drawn = null;
}

function draw(texts, vectors) {
  drawn = { texts, vectors, pairs: pairs(vectors).sort((a, b) => b.value - a.value), place: [0, 1] };
  byId("similarity-result").hidden = false;
  drawTable();
  drawPairs(FIRST_PAIRS);
  showPair(...drawn.place);
}

function drawTable() {
  const { texts, vectors } = drawn;
  const hidden = (text) => element("span", { className: "hidden-text", dir: "auto" }, ` ${text}`);
  const heads = texts.map((text, place) => element("th", { scope: "col", title: text }, String(place + 1), hidden(text)));
  const caption = element("caption", {}, vectors.isBits ? "1 − 2 × differing bits ÷ bits" : "Cosine of each pair");
  const rows = texts.map((text, row) => {
    const number = element("span", { className: "number" }, String(row + 1));
    const head = element("th", { scope: "row", title: text }, number, element("span", { className: "cut", dir: "auto" }, text));
    return element("tr", {}, head, ...texts.map((_, column) => cell(row, column)));
  });
  const corner = element("td", { className: "corner" });
  byId("heat").replaceChildren(caption, element("thead", {}, element("tr", {}, corner, ...heads)), element("tbody", {}, ...rows));
  repaint();
}

function cell(row, column) {
  const value = similarity(drawn.vectors, row, drawn.vectors, column);
  const isFirst = row === drawn.place[0] && column === drawn.place[1];
  const made = element("td", { tabIndex: isFirst ? 0 : -1 }, decimals(value));
  Object.assign(made.dataset, { row, column, value });
  return made;
}

/** Colours the cells; again when the colour scheme changes. */
export function repaint() {
  if (drawn === null) return;
  const scale = scaleOf(drawn.pairs.map((pair) => pair.value));
  for (const made of byId("heat").querySelectorAll("tbody td")) {
    if (made.dataset.row === made.dataset.column) made.className = "self";
    else paint(made, Number(made.dataset.value), scale);
  }
  paintRamp(byId("ramp"));
  byId("legend-low").textContent = decimals(scale.low, 1);
  byId("legend-high").textContent = decimals(scale.high, 1);
}

function drawPairs(limit) {
  const { texts } = drawn;
  const items = drawn.pairs.slice(0, limit).map(({ one, other, value }) => {
    const text = (place) => element("span", { className: "text", dir: "auto" }, texts[place]);
    return element("li", {}, element("span", { className: "score" }, decimals(value, 3)), element("span", { className: "two" }, text(one), text(other)));
  });
  byId("pairs").replaceChildren(...items);
  const more = byId("more-pairs");
  more.hidden = drawn.pairs.length <= limit;
  more.textContent = `Show all ${drawn.pairs.length} pairs`;
}

function showPair(row, column) {
  const { texts, vectors } = drawn;
  const text = (place) => element("bdi", {}, texts[place]);
  const value = decimals(similarity(vectors, row, vectors, column), 3);
  byId("pair").replaceChildren(element("strong", {}, `${row + 1} and ${column + 1}: ${value}`), element("br"), text(row), element("br"), text(column));
}

/** Moves through the cells with the arrow keys, and shows the pair that has the focus or is pointed at. */
export function connectTable() {
  const table = byId("heat");
  const placeOf = (target) => {
    const made = target.closest("tbody td");
    return made === null ? null : [Number(made.dataset.row), Number(made.dataset.column)];
  };
  for (const kind of ["focusin", "mouseover", "click"]) {
    table.addEventListener(kind, (event) => {
      const place = placeOf(event.target);
      if (place !== null) showPair(...place);
    });
  }
  table.addEventListener("keydown", (event) => {
    const place = placeOf(event.target);
    const next = place && moved(event.key, ...place, drawn.texts.length - 1);
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    drawn.place = next;
    const made = table.tBodies[0].rows[next[0]].cells[next[1] + 1];
    made.tabIndex = 0;
    made.focus();
  });
  byId("more-pairs").addEventListener("click", () => {
    drawPairs(Infinity);
    byId("pairs").tabIndex = -1;
    byId("pairs").focus();
  });
}

function moved(key, row, column, last) {
  const within = (place) => Math.min(last, Math.max(0, place));
  const steps = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1] };
  steps.Home = [row, 0];
  steps.End = [row, last];
  return steps[key]?.map(within);
}
