// A run's series, asked for whole once and then only what is new.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, get, live, paths } from "./api.js";

// An evaluation's line comes after its step's own, so the last steps are asked for again.
const AGAIN = 5;

function part(steps, series, freshSteps, freshSeries, after) {
  let kept = steps.length;
  while (kept > 0 && steps[kept - 1] > after) kept--;
  const merged = {};
  for (const name of new Set([...Object.keys(series), ...Object.keys(freshSeries)])) {
    const old = series[name] ? series[name].slice(0, kept) : new Array(kept).fill(null);
    merged[name] = [...old, ...(freshSeries[name] || new Array(freshSteps.length).fill(null))];
  }
  return [[...steps.slice(0, kept), ...freshSteps], merged];
}

/** What is known with what came for steps after `after`, which takes the place of what was known of them. */
export function merge(known, fresh, after) {
  const [steps, series] = part(known.steps, known.series, fresh.steps, fresh.series, after);
  const [evalSteps, evalSeries] = part(known.eval_steps, known.eval_series, fresh.eval_steps, fresh.eval_series, after);
  return { steps, series, eval_steps: evalSteps, eval_series: evalSeries };
}

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
