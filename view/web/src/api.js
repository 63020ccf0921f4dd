// Asks for the tree of JSON files: `api/…` of the live server, `data/…` of a bundle.

const KEPT = 50; // answers
const kept = new Map(); // path → {text, value, at}, the one used last at the end

const meta = typeof document === "undefined" ? null : document.querySelector('meta[name="base"]');
export const base = meta ? meta.content : "api";
/** False in a bundle: nothing changes there, nothing is polled, no label can be given. */
export const live = base === "api";

/** Why an answer did not come, in one line; `status` is 0 where there was no answer at all. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(`${base}/${path}`, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(live ? "the server does not answer: is python -m soundrl.view still running?" : `${path} cannot be read`, 0);
  }
  const text = await response.text();
  if (response.ok) return text;
  let line = `${path}: status ${response.status}`;
  try {
    line = JSON.parse(text).error || line;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    if (!live && response.status === 404) line = `${path} is not part of this bundle`;
  }
  throw new ApiError(line, response.status);
}

/** The answer that is kept for a path, or undefined. */
export function cached(path) {
  return kept.get(path)?.value;
}

/**
 * The JSON at a path below the base. The same text as before gives the very same object, so that nothing is drawn anew.
 *
 * @param {string} path for instance "runs.json" or "small/series.json?after=12"
 * @param {{signal?: AbortSignal, keep?: boolean}} options `keep: false` for answers that nobody asks for again
 * @throws {ApiError} one line: what, and the cure
 */
export async function get(path, { signal, keep = true } = {}) {
  const text = await ask(path, { signal });
  const before = kept.get(path);
  kept.delete(path);
  if (before && before.text === text) {
    kept.set(path, before);
    return before.value;
  }
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new ApiError(`${path} is no JSON: ${error.message}`, 200);
  }
  if (!keep) return value;
  // Very long answers are kept as values alone: their text would be as long again.
  kept.set(path, { text: text.length < 1_000_000 ? text : null, value });
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return value;
}

/** Sends JSON; the answer's JSON. @throws {ApiError} */
export async function post(path, value) {
  const text = await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
  return JSON.parse(text);
}

/** Forgets what is kept of a path, after something was written there. */
export function forget(path) {
  kept.delete(path);
}

export function stepName(step) {
  return `step-${String(step).padStart(6, "0")}`;
}

/** Paths of the contract, so that no page writes them by hand. */
export const paths = {
  runs: () => "runs.json",
  run: (key) => `${key}/run.json`,
  series: (key, after) => `${key}/series.json${after === undefined ? "" : `?after=${after}`}`,
  step: (key, step, kind = "train") => `${key}/${stepName(step)}/${kind}.json`,
  anatomy: (key, step) => `${key}/${stepName(step)}/anatomy.json`,
  group: (key, step, kind, g) => `${key}/${stepName(step)}/${kind}/group-${g}.json`,
  rollout: (key, step, kind, g, sample) => `${key}/${stepName(step)}/${kind}/rollout-${g}-${sample}.json`,
  tokens: (key, step, kind, g, sample, from) => `${key}/${stepName(step)}/${kind}/tokens-${g}-${sample}.json${from ? `?from=${from}` : ""}`,
  judge: (key) => `${key}/judge.json`,
  prompt: (key, id) => `${key}/prompt.json?id=${encodeURIComponent(id)}`,
  find: (key, q, kind, steps) =>
    `${key}/find.json?q=${encodeURIComponent(q)}&kind=${kind || "train"}${steps ? `&steps=${encodeURIComponent(steps)}` : ""}`,
  texts: (key, step) => `${key}/find-texts-${step}.json`,
  labels: (key) => `${key}/labels`,
};
