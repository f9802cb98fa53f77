// Connects the page: one model, one list of texts, one choice of vectors.

import { ask } from "./api.js";
import { connectChoices } from "./choices.js";
import { addChoice, clearCost, measureAll, stopMeasuring } from "./cost.js";
import { byId, debounced, plural, say } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { connectKey, showError } from "./key.js";
import { connectSearch, noteChoice } from "./search.js";
import { MAX_TEXTS, connectTable, repaint, showSimilarity, textsOf } from "./similarity.js";
import { load, save } from "./store.js";
import { showTokens } from "./tokens.js";

const TYPING = 350;
const IDLE = 900; // a cost is several requests: not while somebody types

let model = null;
let choice = null;

const texts = () => textsOf(byId("texts").value);

async function showVectors() {
  const isShown = await showSimilarity(model.id, texts(), choice());
  if (isShown === false) clearCost();
  if (isShown) measureLater();
}

const canMeasure = () => texts().length > 1 && texts().length <= MAX_TEXTS;
const measureLater = debounced(IDLE, () => canMeasure() && addChoice(model, texts(), choice()));

const showTexts = () => Promise.all([showVectors(), showTokens(model, texts().slice(0, MAX_TEXTS))]);

function describe() {
  const parts = [
    `${model.dimensions.join(", ")} dimensions`,
    model.layers.length > 0 ? `exits behind ${model.layers.join(", ")} layers` : "",
    `texts of up to ${plural(model.max_length, "token")}`,
    model.index_versions.length > 0 ? "queries for earlier indexes" : "",
  ];
  byId("model-name").textContent = document.title = model.id;
  byId("model-facts").textContent = `${parts.filter(Boolean).join(" · ")}.`;
}

/** Asks for the model and shows everything; again with a new key. */
async function start() {
  try {
    const { content } = await ask("v1/models");
    say(byId("problem"), "");
    const isFirst = model === null;
    [model] = content.data;
    describe();
    if (isFirst) {
      choice = connectChoices(model, () => {
        showVectors();
        noteChoice();
      });
      connectSearch(model, choice);
      connectTexts();
    }
    await showTexts();
  } catch (error) {
    showError(byId("problem"), error);
  }
}

function connectTexts() {
  const typed = debounced(TYPING, showTexts);
  byId("texts").addEventListener("input", () => {
    save("texts", byId("texts").value);
    typed();
  });
  byId("measure").addEventListener("click", () => canMeasure() && measureAll(model, texts(), choice()));
  byId("measure-stop").addEventListener("click", stopMeasuring);
  connectTable();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
}

byId("texts").value = load("texts", EXAMPLES.join("\n"));
connectKey(start);
start();
