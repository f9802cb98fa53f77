// Which vectors: controls for what this model offers, and nothing else.

import { byId, element } from "./dom.js";
import { load, save } from "./store.js";

const DTYPES = {
  float: "float32",
  int8: "bytes (int8)",
  uint8: "bytes (uint8)",
  binary: "bits in int8 (binary)",
  ubinary: "bits in uint8 (ubinary)",
};
const BITS = ["binary", "ubinary"];

/** Builds the controls. `onChange` runs with each change. Returns a function that gives the choice. */
export function connectChoices(model, onChange) {
  const stored = load("choices", {});
  const form = byId("choices");
  const controls = {
    dimensions: choice("Dimensions", model.dimensions.map((width) => [width, String(width)])),
    layer: choice("Layers", [["", "all"], ...model.layers.map((layer) => [layer, `first ${layer}`])]),
    dtype: choice("Values", dtypesOf(model).map((dtype) => [dtype, DTYPES[dtype]])),
    inputType: choice("Input type", [["", "none"], ...model.input_types.map((name) => [name, name])]),
    indexVersion: choice("Index", []),
  };
  for (const [name, { select }] of Object.entries(controls)) {
    select.id = `choice-${name}`;
    if ([...select.options].some((option) => option.value === stored[name])) select.value = stored[name];
  }
  form.replaceChildren(...Object.values(controls).map(({ field }) => field));
  const refresh = (version) => {
    limitDtypes(controls);
    offerIndexes(controls, model, version);
    for (const { field, select } of Object.values(controls)) field.hidden = select.options.length < 2;
  };
  refresh(stored.indexVersion ?? "");
  form.addEventListener("change", () => {
    refresh(controls.indexVersion.select.value);
    save("choices", Object.fromEntries(Object.entries(controls).map(([name, { select }]) => [name, select.value])));
    onChange();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  return () => read(controls);
}

function choice(label, options) {
  const select = element("select", {}, ...options.map(([value, text]) => element("option", { value }, text)));
  return { select, field: element("label", { className: "field" }, label, select) };
}

function read(controls) {
  const value = (name) => controls[name].select.value;
  return {
    dimensions: Number(value("dimensions")),
    layer: value("layer") === "" ? null : Number(value("layer")),
    dtype: value("dtype"),
    inputType: value("inputType"),
    indexVersion: value("indexVersion"),
  };
}

/** Bits are packed by 8: a width that is no multiple of 8 has none. */
function limitDtypes({ dimensions, dtype }) {
  for (const option of dtype.select.options) option.disabled = !hasDtype(Number(dimensions.select.value), option.value);
  if (dtype.select.selectedOptions[0].disabled) dtype.select.value = "float";
}

const dtypesOf = (model) => model.output_dtypes.filter((dtype) => dtype in DTYPES);

export const hasDtype = (dimensions, dtype) => !BITS.includes(dtype) || dimensions % 8 === 0;

/** The earlier indexes that queries of this width and depth may search; bytes are measured for the model's own vectors. */
function offerIndexes(controls, model, version) {
  const { dimensions, layer, dtype, inputType } = read(controls);
  const at = model.index_versions.filter((entry) => entry.dimensions === dimensions && entry.layer === layer);
  const isOwn = inputType === "document" || ["int8", "uint8"].includes(dtype);
  const known = isOwn ? [] : at.map((entry) => entry.index_version);
  const options = ["", ...known].map((name) => element("option", { value: name }, name || "its own"));
  controls.indexVersion.select.replaceChildren(...options);
  if (known.includes(version)) controls.indexVersion.select.value = version;
}

/** All widths, depths and kinds of values that the model offers, the full vectors first. */
export function allChoices(model) {
  const found = [];
  for (const layer of [null, ...model.layers.toReversed()]) {
    for (const dimensions of model.dimensions) {
      for (const dtype of dtypesOf(model).filter((name) => hasDtype(dimensions, name))) found.push({ dimensions, layer, dtype });
    }
  }
  return found;
}
