// A run's series, asked for whole once and then only what is new.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, live, paths } from "./api.js";
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
  const names = keys.join(",");
  useEffect(() => {
    const control = new AbortController();
    let timer = 0;
    async function once() {
      clearTimeout(timer);
      let error = "";
      for (const key of names ? names.split(",") : []) {
        try {
          const old = known.current[key];
          const after = old && live ? Math.max(0, lastOf(old) - AGAIN) : undefined;
          const fresh = await get(paths.series(key, after), { signal: control.signal, keep: false });
          known.current[key] = after === undefined ? fresh : merge(old, fresh, after);
        } catch (failure) {
          if (control.signal.aborted) return;
          if (!(failure instanceof ApiError)) throw failure;
          error = failure.message;
        }
      }
      if (control.signal.aborted) return;
      setState({ data: { ...known.current }, error });
      if (every && live && !document.hidden) timer = setTimeout(once, every);
    }
    const shown = () => !document.hidden && every && live && once();
    document.addEventListener("visibilitychange", shown);
    once();
    return () => {
      control.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [names, every]);
  return state;
}
