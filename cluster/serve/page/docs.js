// The reference of the API, drawn from its OpenAPI document.

import { ask } from "./api.js";
import { byId, element, say } from "./dom.js";
import { connectKey, showError } from "./key.js";

const MANY = 12; // values that are written out

async function start() {
  try {
    const { content } = await ask("openapi.json");
    say(byId("problem"), "");
    draw(content);
  } catch (error) {
    showError(byId("problem"), error);
  }
}

function draw(spec) {
  const { schemas } = spec.components;
  byId("title").textContent = document.title = `${spec.info.title}: API reference`;
  byId("facts").textContent = `Version ${spec.info.version}. Errors have OpenAI's format. A server with keys wants one as Authorization: Bearer KEY.`;
  const routes = Object.entries(spec.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method, operation })));
  byId("reference").replaceChildren(...routes.map((route) => drawRoute(route, schemas)));
}

function drawRoute({ path, method, operation }, schemas) {
  const id = `${method}-${operation.operationId}`;
  const title = element("h2", { id }, element("code", {}, `${method.toUpperCase()} ${path}`));
  const parts = [title, element("p", {}, `${operation.summary}.`)];
  const bodies = resolved(operation.requestBody?.content["application/json"].schema, schemas);
  const body = bodies?.oneOf?.[0] ?? bodies; // several models differ in values, not in keys
  if (body) parts.push(element("h3", {}, "Body"), drawKeys(body), example(path, body));
  const ok = resolved(operation.responses["200"].content["application/json"]?.schema, schemas);
  if (ok) parts.push(element("h3", {}, "Answer"), drawKeys(ok, schemas));
  const errors = Object.entries(operation.responses).filter(([status]) => status !== "200");
  if (errors.length > 0) parts.push(element("details", {}, element("summary", {}, "Errors"), drawErrors(errors)));
  return element("section", { "aria-labelledby": id }, ...parts);
}

/** The schema that a reference names. */
function resolved(schema, schemas) {
  return schema?.$ref ? schemas[schema.$ref.split("/").at(-1)] : schema;
}

function drawKeys(schema, schemas = {}) {
  const rows = keysOf(schema, schemas).map(({ name, about, isRequired }) => {
    const key = element("th", { scope: "row" }, element("code", {}, name), isRequired ? element("span", { className: "required" }, " required") : "");
    return element("tr", {}, key, element("td", {}, values(about)), element("td", {}, about.description ?? ""));
  });
  const heads = ["Key", "Value", "Meaning"].map((text) => element("th", { scope: "col" }, text));
  const table = element("table", { className: "keys" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  return element("div", { className: "wide" }, table);
}

/** The keys of an object and of the objects in its lists. */
function keysOf(schema, schemas, prefix = "") {
  const found = Object.entries(schema.properties ?? {}).flatMap(([name, given]) => {
    const about = resolved(given, schemas);
    const entry = { name: prefix + name, about, isRequired: prefix === "" && schema.additionalProperties === false && (schema.required ?? []).includes(name) };
    const inner = about.properties ? [about, "."] : [resolved(about.items, schemas), "[]."];
    return inner[0]?.properties ? [entry, ...keysOf(inner[0], schemas, prefix + name + inner[1])] : [entry];
  });
  return found;
}

/** What a value may be, in words. */
function values(about) {
  if (about.const !== undefined) return JSON.stringify(about.const);
  if (about.enum) {
    const given = about.enum.filter((value) => value !== null);
    const shown = given.slice(0, MANY).map((value) => JSON.stringify(value)).join(", ");
    return given.length === 0 ? "none for this model" : shown + (given.length > MANY ? ", …" : "");
  }
  if (about.anyOf) return [...new Set(about.anyOf.map(values))].join(", or ");
  const kinds = [about.type ?? "object"].flat().filter((kind) => kind !== "null");
  const of = about.items ? ` of ${plurals(about.items)}` : "";
  return kinds.map((kind) => (kind === "array" ? `list${of}${most(about)}` : kind)).join(" or ");
}

const most = ({ maxItems }) => (maxItems === undefined ? "" : ` (at most ${maxItems})`);

function plurals(items) {
  if (items.type === "array") return `lists of ${plurals(items.items)}`;
  return `${items.type ?? "object"}s`;
}

/** A command that asks this server. */
function example(path, body) {
  const texts = ["A text.", "Ένα κείμενο."];
  const [model] = body.properties.model.enum;
  const request = body.properties.input ? { model, input: texts } : { model, query: "text", documents: texts };
  if (body.properties.pieces) request.pieces = true;
  const url = new URL(path.slice(1), document.baseURI).href;
  return element("pre", { tabIndex: 0 }, `curl ${url} \\\n    -H 'content-type: application/json' \\\n    -d '${JSON.stringify(request).replaceAll("'", "'\\''")}'`);
}

function drawErrors(errors) {
  const items = errors.flatMap(([status, { description }]) => [element("dt", {}, status), element("dd", {}, description)]);
  return element("dl", {}, ...items);
}

connectKey(start);
start();
