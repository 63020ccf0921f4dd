// A run's series, asked for whole once and then only what is new.
import { useRef, useState } from "preact/hooks";
import { ApiError, get, live, paths } from "./api.js";
import { useAgain } from "./hooks.js";
import { merge } from "./merge.js";

// An evaluation's line comes after its step's own, so the last steps are asked for again.
const AGAIN = 5;

const lastOf = (data) => Math.max(data.steps.at(-1) ?? 0, data.eval_steps.at(-1) ?? 0);

/**
 * The series of some runs.
 *
 * @param {string[]} keys
 * @param {number} every milliseconds between questions for what is new; 0: once
 * @returns {{data: Object<string, Object>, error: string}} by key; a run's are missing until they have come
 */
export function useSeries(keys, every) {
  const [state, setState] = useState({ data: {}, error: "" });
  const known = useRef({});
  async function ask(signal) {
    let error = "";
    for (const key of keys) {
      try {
        const old = known.current[key];
        const after = old && live ? Math.max(0, lastOf(old) - AGAIN) : undefined;
        const fresh = await get(paths.series(key, after), { signal, keep: false });
        known.current[key] = after === undefined ? fresh : merge(old, fresh, after);
      } catch (failure) {
        if (signal.aborted) return;
        if (!(failure instanceof ApiError)) throw failure;
        error = failure.message;
      }
    }
    if (!signal.aborted) setState({ data: { ...known.current }, error });
  }
  useAgain(ask, [keys.join(",")], every);
  return state;
}
