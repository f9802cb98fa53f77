// The field for the API key, which shows where the server wants one, and lines for errors.

import { ServerError, hasKey, useKey } from "./api.js";
import { byId, say } from "./dom.js";

/** Connects the field. `onKey` runs with each new key. */
export function connectKey(onKey) {
  byId("key-form").hidden = !hasKey();
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    byId("key").value = "";
    say(byId("key-note"), "");
    onKey();
  });
}

/** Shows an error in its line; one about the key in the key's. */
export function showError(line, error) {
  if (!(error instanceof ServerError)) console.error(error);
  if (error.status !== 401) {
    say(line, error.message);
    return;
  }
  say(line, "");
  const isFirst = byId("key-form").hidden;
  byId("key-form").hidden = false;
  say(byId("key-note"), hasKey() ? "The server does not know this API key." : "This server wants an API key.");
  if (isFirst) byId("key").focus();
}
