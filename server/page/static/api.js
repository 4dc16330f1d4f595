/** Talks to the server: keys, errors in sentences, streams, uploads that tell how far they are. */

const STORED_KEY = "strata.key";

/** An answer that is an error, in the server's own words. */
export class ApiError extends Error {
  /**
   * @param {number} status 0 if no answer came
   * @param {string} message
   * @param {any} [body]
   */
  constructor(status, message, body) {
    super(message);
    this.status = status;
    /** @type {any} the report of a faulty data set */
    this.report = body?.error?.report ?? null;
  }
}

/** @type {() => Promise<boolean>} asks the person for a key; true if there is one now */
let askForKey = async () => false;
let asking = null;

/** @param {() => Promise<boolean>} ask */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export function hasKey() {
  return sessionStorage.getItem(STORED_KEY) !== null;
}

/** @param {string} key */
export function keepKey(key) {
  if (key) sessionStorage.setItem(STORED_KEY, key);
  else sessionStorage.removeItem(STORED_KEY);
}

function headersWith(more) {
  const key = sessionStorage.getItem(STORED_KEY);
  return { ...(key ? { authorization: `Bearer ${key}` } : {}), ...more };
}

async function newKey() {
  asking ??= askForKey().finally(() => {
    asking = null;
  });
  return asking;
}

/**
 * @param {string} path
 * @param {{method?: string, json?: any, headers?: Record<string, string>, signal?: AbortSignal, quiet?: boolean}} [how]
 *   `quiet`: never ask the person for a key
 * @returns {Promise<Response>} an answer that is no error
 */
export async function call(path, how = {}) {
  const { method = how.json === undefined ? "GET" : "POST", json, headers = {}, signal, quiet = false } = how;
  const body = json === undefined ? undefined : JSON.stringify(json);
  const type = json === undefined ? {} : { "content-type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, body, signal, headers: headersWith({ accept: "application/json", ...type, ...headers }) });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer. Is it still running?");
  }
  if (response.status === 401 && !quiet && (await newKey())) return call(path, how);
  if (!response.ok) throw await problem(response);
  return response;
}

/** @param {Response} response */
async function problem(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // An answer without a readable body still has a status to tell.
  }
  const wait = response.headers.get("retry-after");
  const text = body?.error?.message ?? `The server answered ${response.status}.`;
  return new ApiError(response.status, wait ? `${text} (try again in ${wait} s)` : text, body);
}

/**
 * @param {string} path
 * @param {Parameters<typeof call>[1]} [how]
 * @returns {Promise<any>}
 */
export async function get(path, how = {}) {
  return (await call(path, how)).json();
}

/**
 * Read server-sent events as they come.
 * @param {Response} response
 * @returns {AsyncGenerator<{event: string, id: string, data: string}>}
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        const found = oneEvent(block);
        if (found.data) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function oneEvent(block) {
  const found = { event: "message", id: "", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") found.data += (found.data ? "\n" : "") + value;
    else if (name === "event" || name === "id") found[name] = value;
  }
  return found;
}

/**
 * Send a file as a form. `fetch` does not tell how much was sent, so this is the older interface.
 * @param {string} path
 * @param {File} file
 * @param {{fields?: Record<string, string>, headers?: Record<string, string>, signal?: AbortSignal, onSent?: (ratio: number) => void}} [how]
 *   `fields` go beside the file; empty ones are left out
 * @returns {Promise<any>}
 */
export async function upload(path, file, how = {}) {
  const { status, body, wait } = await sent(path, file, how);
  if (status === 401 && (await newKey())) return upload(path, file, how);
  if (status >= 200 && status < 300) return body;
  const text = body?.error?.message ?? (status ? `The server answered ${status}.` : "The connection broke while the file was sent.");
  throw new ApiError(status, wait ? `${text} (try again in ${wait} s)` : text, body);
}

function sent(path, file, { fields = {}, headers = {}, signal, onSent }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    Object.entries(fields).forEach(([name, value]) => value && form.append(name, value));
    form.append("file", file, file.name);
    request.open("POST", path);
    request.responseType = "json";
    Object.entries(headersWith(headers)).forEach(([name, value]) => request.setRequestHeader(name, value));
    request.upload.addEventListener("progress", (event) => event.lengthComputable && onSent?.(event.loaded / event.total));
    request.addEventListener("load", () =>
      resolve({ status: request.status, body: request.response, wait: request.getResponseHeader("retry-after") }));
    request.addEventListener("error", () => resolve({ status: 0, body: null, wait: null }));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(form);
  });
}

/** @param {unknown} error */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

/** @param {unknown} error */
export function sentence(error) {
  return error instanceof Error ? error.message : String(error);
}

/** A key for requests that may be repeated; `randomUUID` exists in secure contexts only. */
export function freshKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
