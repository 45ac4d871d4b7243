/** The service's HTTP API, below the place that this page was loaded from. */

const STORED = "remembrandt-key";

/** A failure, as one sentence for people. */
export class ApiError extends Error {
  /** @param {string} sentence @param {number} status 0: no answer. @param {number|null} retryAfter seconds */
  constructor(sentence, status, retryAfter = null) {
    super(sentence);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORED),
  set: (value) => sessionStorage.setItem(STORED, value),
  forget: () => sessionStorage.removeItem(STORED),
};

/**
 * Where a path or URL of the API is for this page: the service may be known by several names, or lie below a prefix,
 * and the page may load from its own origin only.
 */
export function here(url) {
  const start = url.indexOf("/v1/");
  return new URL(start < 0 ? url : url.slice(start + 1), document.baseURI).href;
}

/** Asks, and returns the response if it is a success. */
export async function ask(path, { method = "GET", json, form, signal } = {}) {
  const headers = { authorization: `Bearer ${key.get() ?? ""}` };
  if (json !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(here(path), {
      method,
      headers,
      body: json === undefined ? form : JSON.stringify(json),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service does not answer: check the connection, and try again.", 0);
  }
  if (response.ok) return response;
  throw await failure(response);
}

/** Asks for JSON. */
export const askJson = async (path, options) => (await ask(path, options)).json();

async function failure(response) {
  const retryAfter = Number.parseInt(response.headers.get("retry-after") ?? "", 10) || null;
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy in front of the service answers in its own way.
    message = `the service answered with ${response.status}`;
  }
  const again = response.status === 429 && retryAfter !== null ? ` Try again in ${duration(retryAfter)}.` : "";
  return new ApiError(sentence(message) + again, response.status, retryAfter);
}

/** "give `row` or `image`" → "Give `row` or `image`." */
export function sentence(message) {
  const text = message.trim();
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** 90 → "2 minutes". */
export function duration(seconds) {
  const [number, unit] =
    seconds < 90
      ? [seconds, "second"]
      : seconds < 5400
        ? [Math.ceil(seconds / 60), "minute"]
        : [Math.ceil(seconds / 3600), "hour"];
  return `${number} ${unit}${number === 1 ? "" : "s"}`;
}

/**
 * Server-sent events of a response to a POST, which EventSource cannot send.
 * @param {Response} response
 * @returns {AsyncGenerator<{event: string, data: any}>}
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n");
        const field = (name) =>
          lines
            .filter((line) => line.startsWith(`${name}: `))
            .map((line) => line.slice(name.length + 2))
            .join("\n");
        yield { event: field("event"), data: JSON.parse(field("data")) };
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the pictures were done: try again.", 0);
  } finally {
    reader.cancel().catch(() => {}); // already closed, or broken: there is nothing left to end
  }
}
