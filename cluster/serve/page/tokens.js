// How the tokenizer splits texts, beside that of the model that the served one was made from.

import { ask, isAbort } from "./api.js";
import { byId, decimals, element, plural, say } from "./dom.js";
import { showError } from "./key.js";

const OWN = "This model";
const SOURCE = "The model it was made from";

let running = new AbortController();

/** Asks for the pieces of the texts and shows them. */
export async function showTokens(model, texts) {
  running.abort();
  running = new AbortController();
  const result = byId("tokens-result");
  if (texts.length === 0) {
    result.replaceChildren();
    say(byId("tokens-status"), "");
    return;
  }
  try {
    const { content } = await ask("tokenize", { model: model.id, input: texts, pieces: true }, { signal: running.signal });
    say(byId("tokens-problem"), "");
    const splits = content.data.map((entry, place) => ({
      text: texts[place],
      own: split(entry.pieces, entry.special_pieces),
      source: entry.source_pieces && split(entry.source_pieces, entry.source_special_pieces),
      isCut: entry.tokens.length >= model.max_length,
    }));
    say(byId("tokens-status"), summary(splits));
    result.replaceChildren(...splits.map(drawText));
  } catch (error) {
    if (isAbort(error)) return;
    result.replaceChildren();
    say(byId("tokens-status"), "");
    showError(byId("tokens-problem"), error);
  }
}

function split(pieces, special) {
  const places = new Set(special);
  return pieces.map((text, place) => ({ text, isSpecial: places.has(place) }));
}

const inner = (pieces) => pieces.filter((piece) => !piece.isSpecial);
const total = (splits, side) => splits.reduce((sum, one) => sum + inner(one[side]).length, 0);
const letters = (text) => [...text].length;
const covered = (pieces) => letters(inner(pieces).map((piece) => piece.text.replaceAll(/<0x[0-9A-F]{2}>/g, "")).join(""));

function summary(splits) {
  const own = total(splits, "own");
  const length = splits.reduce((sum, one) => sum + letters(one.text), 0);
  const line = `${plural(own, "token")} without special ones`;
  if (!splits[0].source) return `${line}, ${decimals(length / own, 1)} characters each.`;
  const source = total(splits, "source");
  return `${line}; the tokenizer of the model it was made from needs ${source}, ${decimals(source / own, 1)} times as many.`;
}

function drawText({ text, own, source, isCut }) {
  const sides = [drawSide(OWN, own, isCut ? covered(own) : letters(text), isCut)];
  if (source) sides.push(drawSide(SOURCE, source, letters(text), false));
  return element("article", { className: "split" }, element("h3", { dir: "auto" }, text), element("div", { className: "sides" }, ...sides));
}

function drawSide(title, pieces, length, isCut) {
  const tokens = inner(pieces).length;
  const facts = `${plural(tokens, "token")}, ${tokens ? decimals(length / tokens, 1) : 0} characters each${isCut ? ", cut here" : ""}`;
  const chips = pieces.map((piece) => element("span", { className: chipClass(piece) }, piece.text));
  return element("div", {}, element("p", { className: "side" }, element("strong", {}, title), ` ${facts}`), element("p", { className: "chips", dir: "auto" }, ...chips));
}

function chipClass({ text, isSpecial }) {
  if (isSpecial) return "chip special";
  if (text === "") return "chip empty";
  return text.includes("<0x") ? "chip bytes" : "chip";
}
