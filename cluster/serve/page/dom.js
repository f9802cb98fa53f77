// Elements, built without HTML: text of users is only ever text.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; a child that is no element becomes text. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

/** Shows a line, or hides it for an empty one. */
export function say(line, text) {
  line.textContent = text;
  line.hidden = text === "" && line.getAttribute("role") === "alert";
}

/** A function that waits until it has not been called for some time, and then runs with the last arguments. */
export function debounced(milliseconds, run) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), milliseconds);
  };
}

const NUMBER = new Intl.NumberFormat("en");

export const count = (number) => NUMBER.format(number);

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** A number with so many decimals, and a real minus. */
export const decimals = (number, digits = 2) => number.toFixed(digits).replace(/^-(?=[\d.]*[1-9])/, "−").replace(/^-/, "");

/** Bytes as people read them, in powers of 1,000. */
export function bytes(number) {
  if (number < 10_000) return plural(number, "byte");
  const power = Math.min(4, Math.floor(Math.log10(number) / 3));
  return `${Number((number / 1000 ** power).toPrecision(3))} ${["", "kB", "MB", "GB", "TB"][power]}`;
}
