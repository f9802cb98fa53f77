// Connects the page: one model, one list of texts, one choice of vectors.

import { ask } from "./api.js";
import { connectChoices } from "./choices.js";
import { addChoice, clearCost, measureAll, stopMeasuring } from "./cost.js";
import { byId, debounced, element, plural, say } from "./dom.js";
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

/** Links to the pages of the other models that the server has; an alias is no other model. */
function listOthers(models) {
  const others = models.filter(({ id, root }) => !root && id !== (model.root ?? model.id));
  const links = others.map(({ id }) => element("a", { href: `?model=${encodeURIComponent(id)}` }, id));
  byId("other-models").replaceChildren(...links.flatMap((link, place) => [place === 0 ? "Also served: " : ", ", link]));
}

/** Asks for the model and shows everything; again with a new key. */
async function start() {
  try {
    const { content } = await ask("v1/models");
    say(byId("problem"), "");
    const isFirst = model === null;
    const asked = new URLSearchParams(location.search).get("model");
    model = content.data.find(({ id }) => id === asked) ?? content.data[0];
    describe();
    listOthers(content.data);
    if (asked && asked !== model.id) say(byId("problem"), `There is no model ${asked} here. This is ${model.id}.`);
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
