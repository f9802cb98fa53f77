// Reads a file of the user: lines of a text, or the columns of a table.

export const MAX_LINES = 20_000;
const MAX_BYTES = 200e6;
const LOOKED_AT = 100;

/**
 * Reads a file. Returns { columns, linesOf(column), isCut }; a plain text has one column.
 * Throws an Error that says what is wrong with the file.
 */
export async function readFile(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} has more than ${MAX_BYTES / 1e6} MB. Choose a part of it.`);
  const text = decoded(file.name, await file.arrayBuffer());
  const kind = file.name.toLowerCase().split(".").at(-1);
  const table = { csv: () => separated(text, ","), tsv: () => separated(text, "\t"), jsonl: () => objects(file.name, text) }[kind];
  const { columns, rows } = table ? table() : { columns: ["text"], rows: text.split(/\r?\n/).map((line) => ({ text: line })) };
  if (columns.length === 0) throw new Error(`${file.name} has no column of texts.`);
  return { columns: byLength(columns, rows), linesOf: (column) => linesOf(rows, column) };
}

function decoded(name, buffer) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(buffer);
  } catch {
    throw new Error(`${name} is not text in UTF-8. Save it as UTF-8.`);
  }
}

/** Lines of a column with their numbers in the file: { lines: [{ number, text }], total }. Blank ones are left out. */
function linesOf(rows, column) {
  const lines = [];
  let total = 0;
  rows.forEach((row, place) => {
    const text = row[column];
    if (typeof text !== "string" || text.trim() === "") return;
    total += 1;
    if (lines.length < MAX_LINES) lines.push({ number: place + 1, text });
  });
  return { lines, total };
}

/** Columns, the one with the longest texts first. */
function byLength(columns, rows) {
  const sample = rows.slice(0, LOOKED_AT);
  const length = (column) => sample.reduce((sum, row) => sum + String(row[column] ?? "").length, 0);
  return [...columns].sort((a, b) => length(b) - length(a));
}

/** Rows of a table with a head (RFC 4180): quoted fields hold separators, line ends and doubled quotes. */
export function separated(text, separator) {
  const [head, ...records] = recordsOf(text, separator);
  const columns = (head ?? []).map((name, place) => name.trim() || `column ${place + 1}`);
  const rows = records.filter((fields) => fields.length > 1 || fields[0] !== "");
  return { columns, rows: rows.map((fields) => Object.fromEntries(columns.map((name, place) => [name, fields[place]]))) };
}

function recordsOf(text, separator) {
  const records = [[]];
  let field = "";
  let isQuoted = false;
  const endField = (value) => {
    records.at(-1).push(value);
    field = "";
  };
  for (let place = 0; place < text.length; place += 1) {
    const char = text[place];
    if (isQuoted && char === '"' && text[place + 1] === '"') {
      field += char;
      place += 1;
    } else if (char === '"' && (isQuoted || field === "")) {
      isQuoted = !isQuoted;
    } else if (isQuoted || (char !== separator && char !== "\n")) {
      field += char;
    } else if (char === separator) {
      endField(field);
    } else {
      endField(field.replace(/\r$/, ""));
      records.push([]);
    }
  }
  if (field !== "" || records.at(-1).length > 0) endField(field);
  return records.filter((fields) => fields.length > 0);
}

function objects(name, text) {
  const rows = text.split("\n").map((line, place) => {
    if (line.trim() === "") return {};
    try {
      return Object(JSON.parse(line));
    } catch {
      throw new Error(`${name}: line ${place + 1} is not JSON. A .jsonl file has an object in each line.`);
    }
  });
  const columns = new Set();
  for (const row of rows.slice(0, LOOKED_AT)) {
    for (const [column, value] of Object.entries(row)) if (typeof value === "string") columns.add(column);
  }
  return { columns: [...columns], rows };
}
