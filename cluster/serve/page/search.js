// A search over a file: its lines become vectors that stay in this tab.

import { isAbort } from "./api.js";
import { byId, count, debounced, decimals, element, plural, say } from "./dom.js";
import { MAX_LINES, readFile } from "./file.js";
import { showError } from "./key.js";
import { load, save } from "./store.js";
import { append, embed, embeddingRequest, emptyLike, nearest } from "./vectors.js";

const BATCH = 64; // lines of a request: few enough to see progress and to leave the model to others in between
const HITS = 10;
const QUERY_DELAY = 200;

let model, choiceNow;
let table = null; // the file that was read
let index = null; // { lines, vectors, choice } of the encoded lines
let encoding = new AbortController();
let querying = new AbortController();

/** Connects the controls. `choice` gives the vectors to ask for. */
export function connectSearch(served, choice) {
  [model, choiceNow] = [served, choice];
  byId("file").addEventListener("change", openFile);
  byId("column").addEventListener("change", showLines);
  byId("encode").addEventListener("click", encode);
  byId("encode-stop").addEventListener("click", () => encoding.abort());
  byId("query").value = load("query", "");
  const later = debounced(QUERY_DELAY, search);
  byId("query").addEventListener("input", () => {
    save("query", byId("query").value);
    later();
  });
  if (byId("file").files.length > 0) openFile(); // a browser may restore the file at a reload
}

/** Says that the encoded lines have other vectors than those that are chosen now. */
export function noteChoice() {
  if (index === null || !byId("encode-stop").hidden) return;
  byId("encode").hidden = isCurrent();
  if (!isCurrent()) say(byId("search-status"), `${described()} Encode again for the vectors that are chosen now.`);
  else say(byId("search-status"), described());
}

const chosen = () => ({ ...choiceNow(), indexVersion: "", inputType: "" });
const isCurrent = () => JSON.stringify(index.choice) === JSON.stringify(chosen());

function described() {
  const { dimensions, layer, dtype } = index.choice;
  return `${plural(index.vectors.count, "line")} encoded: ${dimensions} dimensions, ${layer === null ? "all layers" : `first ${layer} layers`}, ${dtype}.`;
}

async function openFile() {
  encoding.abort();
  table = index = null;
  byId("hits").replaceChildren();
  byId("query-field").hidden = byId("column-field").hidden = byId("encode").hidden = true;
  const [file] = byId("file").files;
  if (!file) return;
  say(byId("search-problem"), "");
  try {
    table = await readFile(file);
  } catch (error) {
    say(byId("search-status"), "");
    say(byId("search-problem"), error.message);
    return;
  }
  byId("column").replaceChildren(...table.columns.map((name) => element("option", { value: name }, name)));
  byId("column-field").hidden = table.columns.length < 2;
  showLines();
}

function showLines() {
  const { lines, total } = table.linesOf(byId("column").value);
  byId("encode").hidden = lines.length === 0;
  const cut = total > MAX_LINES ? ` The first ${count(MAX_LINES)} of them are encoded.` : "";
  say(byId("search-status"), `${plural(total, "line")} with text.${cut}`);
}

/** Batches of lines within the server's limits on inputs and bytes. */
export function* batches(lines, maxInputs, maxBytes, emptyRequest) {
  const size = (text) => new TextEncoder().encode(JSON.stringify(text)).length + 1;
  const rest = maxBytes - size(emptyRequest);
  let [batch, used] = [[], 0];
  for (const line of lines) {
    const bytes = size(line.text);
    if (batch.length > 0 && (batch.length >= maxInputs || used + bytes > rest)) {
      yield batch;
      [batch, used] = [[], 0];
    }
    batch.push(line);
    used += bytes;
  }
  if (batch.length > 0) yield batch;
}

async function encode() {
  const { lines } = table.linesOf(byId("column").value);
  const choice = chosen();
  const { signal } = (encoding = new AbortController());
  const began = performance.now();
  index = null;
  byId("hits").replaceChildren();
  showEncoding(true, lines.length);
  say(byId("search-problem"), "");
  try {
    const asDocument = { ...choice, inputType: "document" };
    const limit = Math.min(BATCH, model.max_inputs);
    for (const batch of batches(lines, limit, model.max_body_bytes, embeddingRequest(model.id, [], asDocument))) {
      const texts = batch.map((line) => line.text);
      const onWait = (seconds) => say(byId("search-status"), `The server is busy. Next try in ${seconds} s.`);
      const { vectors } = await embed(model.id, texts, asDocument, { signal, onWait });
      index ??= { lines, choice, vectors: emptyLike(vectors, lines.length) };
      append(index.vectors, vectors);
      showProgress(index.vectors.count, lines.length, performance.now() - began);
    }
    say(byId("search-status"), described());
  } catch (error) {
    const encoded = index?.vectors.count ?? 0;
    say(byId("search-status"), `Stopped after ${count(encoded)} of ${plural(lines.length, "line")}.${encoded ? " They can be searched." : ""}`);
    if (!isAbort(error)) showError(byId("search-problem"), error);
  }
  if (encoding.signal !== signal) return; // another file was chosen
  const hasFocus = document.activeElement === byId("encode-stop");
  showEncoding(false, lines.length);
  byId("encode").hidden = index !== null && index.vectors.count === lines.length && isCurrent();
  byId("query-field").hidden = index === null;
  if (hasFocus) byId(index === null ? "encode" : "query").focus();
  await search();
}

function showEncoding(isOn, total) {
  byId("encode").hidden = isOn;
  byId("encode-stop").hidden = !isOn;
  byId("encode-progress").hidden = !isOn;
  byId("encode-progress").max = total;
  byId("encode-progress").value = 0;
  byId("file").disabled = byId("column").disabled = isOn;
  if (isOn) byId("encode-stop").focus();
}

function showProgress(done, total, milliseconds) {
  byId("encode-progress").value = done;
  const left = Math.ceil(((total - done) * milliseconds) / done / 1000);
  say(byId("search-status"), `${count(done)} of ${plural(total, "line")}, ${plural(left, "second")} left.`);
}

async function search() {
  querying.abort();
  const { signal } = (querying = new AbortController());
  const text = byId("query").value;
  if (index === null || text.trim() === "") {
    byId("hits").replaceChildren();
    return;
  }
  try {
    const { vectors } = await embed(model.id, [text], { ...index.choice, inputType: "query" }, { signal });
    if (signal.aborted) return;
    say(byId("search-problem"), "");
    drawHits(nearest(vectors, index.vectors, HITS));
  } catch (error) {
    if (!isAbort(error)) showError(byId("search-problem"), error);
  }
}

function drawHits(found) {
  const items = found.map(({ row, value }) => {
    const { number, text } = index.lines[row];
    const about = element("span", { className: "score" }, decimals(value, 3), element("span", { className: "line" }, `line ${count(number)}`));
    return element("li", {}, about, element("span", { className: "text", dir: "auto" }, text));
  });
  byId("hits").replaceChildren(...items);
  say(byId("search-status"), `${described()} The ${found.length} nearest are shown.`);
}
