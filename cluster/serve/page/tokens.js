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
      own: split(entry.pieces, entry.special_pieces, entry.unknown_pieces),
      source: entry.source_pieces && split(entry.source_pieces, entry.source_special_pieces, entry.source_unknown_pieces),
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

function split(pieces, special, unknown) {
  return pieces.map((text, place) => ({ text, isSpecial: special.includes(place), isUnknown: unknown.includes(place) }));
}

const inner = (pieces) => pieces.filter((piece) => !piece.isSpecial);
const total = (splits, side) => splits.reduce((sum, one) => sum + inner(one[side]).length, 0);
const letters = (text) => [...text].length;
const covered = (pieces) => letters(inner(pieces).map((piece) => piece.text.replaceAll(/<0x[0-9A-F]{2}>/g, "")).join(""));

function summary(splits) {
  const own = total(splits, "own");
  const unknown = splits.flatMap((one) => one.own).filter((piece) => piece.isUnknown).length;
  const length = splits.reduce((sum, one) => sum + letters(one.text), 0);
  const line = `${plural(own, "token")} without special ones${unknown ? `, ${unknown} unknown` : ""}`;
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
  const unknown = pieces.filter((piece) => piece.isUnknown).length;
  const known = unknown ? `, ${unknown} unknown: the model cannot read what is crossed out` : "";
  const facts = `${plural(tokens, "token")}, ${tokens ? decimals(length / tokens, 1) : 0} characters each${known}${isCut ? ", cut here" : ""}`;
  const chips = pieces.map((piece) => chip(piece));
  return element("div", {}, element("p", { className: "side" }, element("strong", {}, title), ` ${facts}`), element("p", { className: "chips", dir: "auto" }, ...chips));
}

function chip(piece) {
  const made = element("span", { className: chipClass(piece) }, piece.text);
  if (piece.isSpecial) made.dir = "ltr"; // so that the direction of the line is that of the text
  return made;
}

function chipClass({ text, isSpecial, isUnknown }) {
  if (isSpecial) return "chip special";
  if (isUnknown) return "chip unknown";
  if (text === "") return "chip empty";
  return text.includes("<0x") ? "chip bytes" : "chip";
}
