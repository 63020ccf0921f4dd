// What pages need of the browser: JSON that may be polled, the route, and the width of an element.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { cached, get, live } from "./api.js";
import { oneLine } from "./parts/safe.js";
import { parse } from "./route.js";

/**
 * The JSON at a path; asked again every `every` milliseconds while the tab is shown, never in a bundle.
 *
 * @param {string|null} path null asks nothing
 * @param {number} every 0: once
 * @returns {{value: any, error: string, again: function(): void}} value is undefined until the first answer; with an error the last
 *   value stays
 */
export function useJson(path, every = 0) {
  const [state, setState] = useState({ path, value: path ? cached(path) : undefined, error: "" });
  const ask = useRef(() => {});
  useEffect(() => {
    if (!path) return undefined;
    const control = new AbortController();
    let timer = 0;
    let asking = false;
    setState({ path, value: cached(path), error: "" });
    async function once() {
      clearTimeout(timer);
      if (asking || control.signal.aborted) return;
      asking = true;
      try {
        const value = await get(path, { signal: control.signal });
        if (!control.signal.aborted) setState((old) => (old.value === value && !old.error ? old : { path, value, error: "" }));
      } catch (error) {
        if (control.signal.aborted) return;
        setState((old) => ({ ...old, error: String(error.message) }));
      } finally {
        asking = false;
      }
      if (every && live && !document.hidden && !control.signal.aborted) timer = setTimeout(once, every);
    }
    function shown() {
      if (!document.hidden && every && live) once();
    }
    ask.current = once;
    document.addEventListener("visibilitychange", shown);
    if (!(cached(path) && !live)) once();
    return () => {
      control.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [path, every]);
  const current = state.path === path ? state : { value: path ? cached(path) : undefined, error: "" };
  return { value: current.value, error: current.error, again: () => ask.current() };
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
