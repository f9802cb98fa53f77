// Vectors as the server sends them, and their similarity. A set of n vectors is one flat array.

import { ask } from "./api.js";

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/** The body of a request for vectors of texts. `choice` has dimensions, layer, dtype, and what else a request may say. */
export function embeddingRequest(model, texts, choice) {
  const body = { model, input: texts, encoding_format: "base64", dimensions: choice.dimensions, output_dtype: choice.dtype };
  if (choice.layer !== null) body.layer = choice.layer;
  if (choice.inputType) body.input_type = choice.inputType;
  if (choice.indexVersion) body.index_version = choice.indexVersion;
  return body;
}

/** The vectors of texts, the tokens of the request and its milliseconds. */
export async function embed(model, texts, choice, options) {
  const { content, milliseconds } = await ask("v1/embeddings", embeddingRequest(model, texts, choice), options);
  const vectors = decode(content.data.map((entry) => entry.embedding), choice.dtype);
  return { vectors, tokens: content.usage.total_tokens, milliseconds };
}

const ARRAYS = { float: Float32Array, int8: Int8Array, uint8: Int8Array, binary: Uint8Array, ubinary: Uint8Array };

/** Vectors of base64 strings: { values, width, count, isBits }. Bytes are as `int8` has them, bits as `ubinary` has them. */
export function decode(strings, dtype) {
  const rows = strings.map((text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0)));
  // An int8 is the uint8 less 128, which is the same byte with another first bit.
  if (dtype === "uint8" || dtype === "binary") rows.forEach((row) => row.forEach((byte, place) => (row[place] = byte ^ 0x80)));
  const vectors = rows.map((row) => new ARRAYS[dtype](row.buffer));
  const width = vectors[0].length;
  const values = new ARRAYS[dtype](width * rows.length);
  vectors.forEach((vector, place) => values.set(vector, place * width));
  return withLengths({ values, width, count: rows.length, isBits: ARRAYS[dtype] === Uint8Array });
}

/** Room for `count` vectors like those of a first answer. */
export function emptyLike(vectors, count) {
  const values = new vectors.values.constructor(vectors.width * count);
  return { values, width: vectors.width, count: 0, isBits: vectors.isBits, lengths: new Float64Array(count) };
}

/** Appends vectors to a set that has room for them. */
export function append(set, vectors) {
  set.values.set(vectors.values, set.count * set.width);
  set.lengths.set(vectors.lengths, set.count);
  set.count += vectors.count;
}

function withLengths(set) {
  const lengths = Float64Array.from({ length: set.count }, (_, row) => (set.isBits ? 1 : Math.sqrt(dot(set, row, set, row))));
  return { ...set, lengths };
}

function dot(one, row, other, column) {
  let sum = 0;
  const [a, b] = [row * one.width, column * other.width];
  for (let place = 0; place < one.width; place += 1) sum += one.values[a + place] * other.values[b + place];
  return sum;
}

function differentBits(one, row, other, column) {
  let sum = 0;
  const [a, b] = [row * one.width, column * other.width];
  for (let place = 0; place < one.width; place += 1) sum += ONES[one.values[a + place] ^ other.values[b + place]];
  return sum;
}

/** Cosine of two vectors; of bits 1 - 2 * distance / bits, which is 1 for equal ones and -1 for opposite ones. */
export function similarity(one, row, other, column) {
  if (one.isBits) return 1 - (2 * differentBits(one, row, other, column)) / (8 * one.width);
  const lengths = one.lengths[row] * other.lengths[column];
  return lengths === 0 ? 0 : dot(one, row, other, column) / lengths;
}

/** All pairs of a set: [{ one, other, value }] with one < other. */
export function pairs(set) {
  const found = [];
  for (let one = 0; one < set.count; one += 1) {
    for (let other = one + 1; other < set.count; other += 1) found.push({ one, other, value: similarity(set, one, set, other) });
  }
  return found;
}

/** The rows of a set that are most similar to the first vector of `query`, best first. */
export function nearest(query, set, limit) {
  const scores = Float64Array.from({ length: set.count }, (_, row) => similarity(query, 0, set, row));
  const rows = Uint32Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
  return Array.from(rows.subarray(0, limit), (row) => ({ row, value: scores[row] }));
}
