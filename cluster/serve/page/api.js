// Requests to the server: the key, errors as the server words them, and another try where it asks for one.

import { load, save } from "./store.js";

const PASSING = [429, 503];
const TRIES = 10;

/** An answer that is an error, with the server's message. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let key = load("key", "");

export const hasKey = () => key !== "";

export function useKey(given) {
  key = given;
  save("key", given);
}

/**
 * Asks the server: GET without a body, else POST. The URL is relative to the page, which may be below a path of a proxy.
 * Returns the content, and the milliseconds of the request that was answered.
 */
export async function ask(path, body, { signal, onWait } = {}) {
  for (let tries = 1; ; tries += 1) {
    const began = performance.now();
    const response = await send(path, body, signal);
    const text = await response.text();
    const milliseconds = performance.now() - began;
    if (PASSING.includes(response.status) && tries < TRIES) {
      const seconds = Number(response.headers.get("Retry-After") ?? 1);
      onWait?.(seconds);
      await pause(Number.isFinite(seconds) ? seconds * 1000 : 1000, signal);
      continue;
    }
    if (!response.ok) throw new ServerError(response.status, message(response, text));
    return { content: JSON.parse(text), milliseconds };
  }
}

async function send(path, body, signal) {
  const headers = {};
  // Headers hold bytes: those of the key in UTF-8, as the server compares them.
  if (key !== "") headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Check that it still runs.");
  }
}

function message(response, text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

export const isAbort = (error) => error.name === "AbortError";
