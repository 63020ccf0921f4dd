// Every state that a person chooses stands in the address after '#'. This file turns addresses into routes and back.

/** Pages below a run, by the shape of their path; `:name` takes a part, numbers are checked. */
const SHAPES = [
  ["runs", []],
  ["compare", ["compare"]],
  ["run", ["run", ":key"]],
  ["judge", ["run", ":key", "judge"]],
  ["prompt", ["run", ":key", "prompt"]],
  ["find", ["run", ":key", "find"]],
  ["step", ["run", ":key", "step", ":step"]],
  ["anatomy", ["run", ":key", "step", ":step", "anatomy"]],
  ["group", ["run", ":key", "step", ":step", "group", ":g"]],
  ["rollout", ["run", ":key", "step", ":step", "rollout", ":g", ":sample"]],
];
const NUMBERS = new Set(["step", "g", "sample"]);
// A run's key is one safe path part: the server makes it so, and what else is in an address is not asked of it.
const KEY = /^[A-Za-z0-9_=-][A-Za-z0-9._=-]*$/;

function match(shape, parts) {
  if (shape.length !== parts.length) return null;
  const found = {};
  for (let i = 0; i < shape.length; i++) {
    if (!shape[i].startsWith(":")) {
      if (shape[i] !== parts[i]) return null;
      continue;
    }
    const name = shape[i].slice(1);
    if (NUMBERS.has(name)) {
      if (!/^\d{1,9}$/.test(parts[i])) return null;
      found[name] = Number(parts[i]);
    } else {
      if (!KEY.test(parts[i])) return null;
      found[name] = parts[i];
    }
  }
  return found;
}

/**
 * A route from an address.
 *
 * @param {string} hash as `location.hash` gives it, with or without '#'
 * @returns {{page: string, query: Object<string, string>, key?: string, step?: number, g?: number, sample?: number}}
 *   page is "unknown" where no page has such an address
 */
export function parse(hash) {
  const text = hash.replace(/^#/, "");
  const at = text.indexOf("?");
  const parts = (at < 0 ? text : text.slice(0, at)).split("/").filter((part) => part !== "");
  const query = {};
  if (at >= 0) for (const [name, value] of new URLSearchParams(text.slice(at + 1))) query[name] = value;
  for (const [page, shape] of SHAPES) {
    const found = match(shape, parts);
    if (found) return { page, ...found, query };
  }
  return { page: "unknown", query };
}

/** One value for the query part, readable where that is safe. */
function escape(value) {
  return encodeURIComponent(String(value)).replace(/%2C/g, ",").replace(/%2F/g, "/").replace(/%3A/g, ":").replace(/%20/g, "+");
}

/**
 * The address of a route, with '#'. What is undefined, null, false or "" in the query is left out; true is written 1.
 *
 * @param {{page: string, query?: Object}} route as `parse` gives it
 * @throws {Error} where a part that the page needs is missing
 */
export function format(route) {
  const shape = SHAPES.find(([page]) => page === route.page);
  if (!shape) throw new Error(`no page is called ${route.page}`);
  const parts = shape[1].map((part) => {
    if (!part.startsWith(":")) return part;
    const value = route[part.slice(1)];
    if (value === undefined || value === null) throw new Error(`the address of ${route.page} needs ${part.slice(1)}`);
    return String(value);
  });
  const query = Object.entries(route.query || {})
    .filter(([, value]) => value !== undefined && value !== null && value !== false && value !== "")
    .map(([name, value]) => `${name}=${escape(value === true ? 1 : value)}`);
  return `#/${parts.join("/")}${query.length ? `?${query.join("&")}` : ""}`;
}

/** The address of the same page with some of its query changed: `changed(route, {filter: "flawed"})`. */
export function changed(route, query) {
  return format({ ...route, query: { ...route.query, ...query } });
}

/** The route a level up, or null on the first page. A step's kind is kept, filters are not. */
export function up(route) {
  const { key, step, g } = route;
  const query = route.query.kind ? { kind: route.query.kind } : {};
  if (route.page === "rollout") return { page: "group", key, step, g, query };
  if (route.page === "group" || route.page === "anatomy") return { page: "step", key, step, query };
  if (["step", "judge", "prompt", "find"].includes(route.page)) return { page: "run", key, query: {} };
  return route.page === "runs" ? null : { page: "runs", query: {} };
}

/**
 * Goes to a route; `replace` leaves no entry in the history, for sliders and boxes that change often. The page is drawn anew before the
 * next key is heard: an event of the browser's own (`location.hash = …`) would come after that, and the key would be the page's before.
 */
export function go(route, replace = false) {
  const address = typeof route === "string" ? route : format(route);
  if (address === location.hash) return;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
