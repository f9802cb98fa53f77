// What survives a reload of this tab. Nothing is kept longer.

const PREFIX = "scion.";

/** The stored value of a key; `otherwise` where there is none, or the browser keeps nothing. */
export function load(key, otherwise) {
  try {
    const stored = sessionStorage.getItem(PREFIX + key);
    return stored === null ? otherwise : JSON.parse(stored);
  } catch {
    return otherwise;
  }
}

/** Stores a value; a browser that keeps nothing forgets it with the page. */
export function save(key, value) {
  try {
    sessionStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // The page works without.
  }
}
