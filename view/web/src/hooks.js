// What pages need of the browser: JSON that may be polled, the route, and the width of an element.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { cached, get, live } from "./api.js";
import { oneLine } from "./parts/safe.js";
import { parse } from "./route.js";

/**
 * Calls a question again and again while the tab is shown, never in a bundle. Another pace does not ask anew, it only waits otherwise.
 *
 * @param {function(AbortSignal): Promise} ask one question at a time; not called again before it has ended
 * @param {any[]} about what the question is about: another one begins again
 * @param {number} every milliseconds between the end of one and the next; 0: once
 * @param {boolean} first false leaves out the first question
 * @returns {function(): Promise} asks now
 */
export function useAgain(ask, about, every, first = true) {
  const now = useRef({ pace: every, ask, once: async () => {}, later: () => {} });
  now.current.pace = every;
  now.current.ask = ask;
  useEffect(() => {
    const own = now.current;
    const control = new AbortController();
    let timer = 0;
    let asking = false;
    own.later = () => {
      clearTimeout(timer);
      if (own.pace && live && !document.hidden && !asking && !control.signal.aborted) timer = setTimeout(own.once, own.pace);
    };
    own.once = async () => {
      clearTimeout(timer);
      if (asking || control.signal.aborted) return;
      asking = true;
      try {
        await own.ask(control.signal);
      } finally {
        asking = false;
      }
      own.later();
    };
    const shown = () => document.hidden || !own.pace || !live || own.once();
    document.addEventListener("visibilitychange", shown);
    if (first) own.once();
    return () => {
      control.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, about);
  useEffect(() => now.current.later(), [every]);
  return () => now.current.once();
}

/**
 * The JSON at a path; asked again every `every` milliseconds while the tab is shown, never in a bundle.
 *
 * @param {string|null} path null asks nothing
 * @param {number} every 0: once
 * @returns {{value: any, error: string, again: function(): Promise}} value is undefined until the first answer; with an error the last
 *   value stays
 */
export function useJson(path, every = 0) {
  const [state, setState] = useState({ path, value: path ? cached(path) : undefined, error: "" });
  async function ask(signal) {
    if (!path) return;
    try {
      const value = await get(path, { signal });
      if (!signal.aborted) setState((old) => (old.path === path && old.value === value && !old.error ? old : { path, value, error: "" }));
    } catch (error) {
      if (signal.aborted) return;
      const message = String(error.message);
      setState((old) => ({ path, value: old.path === path ? old.value : cached(path), error: message }));
    }
  }
  const again = useAgain(ask, [path], every, live || !path || cached(path) === undefined);
  const current = state.path === path ? state : { value: path ? cached(path) : undefined, error: "" };
  return { value: current.value, error: current.error, again };
}

/** The route of the address, anew whenever that changes. */
export function useRoute() {
  const [route, setRoute] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = () => setRoute(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

/** Calls when the browser has nothing else to do, at once after a while where it never has; the function returned takes that back. */
function whenIdle(call) {
  if (!window.requestIdleCallback) {
    const timer = setTimeout(call, 50);
    return () => clearTimeout(timer);
  }
  const handle = requestIdleCallback(call, { timeout: 400 });
  return () => cancelIdleCallback(handle);
}

/**
 * A ref and the width in CSS pixels of the element that it is given to; 0 until that stands, so that nothing is drawn twice. What is far
 * below the window gets its width when the browser has nothing else to do: what can be seen is drawn first.
 */
export function useWidth() {
  const ref = useRef(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const measure = () => setWidth(Math.max(120, ref.current.clientWidth));
    const observer = new ResizeObserver(measure);
    const begin = () => {
      measure();
      observer.observe(ref.current);
    };
    let forget = () => {};
    if (ref.current.getBoundingClientRect().top < 1.5 * innerHeight) begin();
    else forget = whenIdle(begin);
    return () => {
      forget();
      observer.disconnect();
    };
  }, []);
  return [ref, width];
}

/** Sets the tab's title: `useTitle("step 12", "small")` → "step 12 · small · soundrl". */
export function useTitle(...parts) {
  const title = oneLine([...parts.filter(Boolean), "soundrl"].join(" · "), 200);
  useEffect(() => {
    document.title = title;
  }, [title]);
}
