// Keys. A page says which keys it has; the page's own go before those of the shell. Nothing happens while a field is being written in.
import { useLayoutEffect, useRef } from "preact/hooks";

const layers = []; // of {current: {key: [what it does, function]}}, the innermost last
const PATIENCE = 1500; // ms between "g" and the letter after it

/**
 * Keys of a part of the page while it is shown.
 *
 * @param {Object<string, [string, function(KeyboardEvent): void]>} keys "j", "Enter", "?" or two in turn: "g r"
 * @param {boolean} outermost the shell's own, which every page may hide
 */
export function useKeys(keys, outermost = false) {
  const layer = useRef(keys);
  layer.current = keys;
  useLayoutEffect(() => {
    if (outermost) layers.unshift(layer);
    else layers.push(layer);
    return () => {
      layers.splice(layers.indexOf(layer), 1);
    };
  }, [outermost]);
}

/** What each key does now: [[key, text]…], inner layers hiding outer ones. */
export function described() {
  const found = new Map();
  for (const layer of layers) for (const [key, [text]] of Object.entries(layer.current)) found.set(key, text);
  return [...found];
}

function action(key) {
  for (let i = layers.length - 1; i >= 0; i--) if (layers[i].current[key]) return layers[i].current[key][1];
  return null;
}

function isField(element) {
  if (!element || !element.closest) return false;
  if (element.closest("textarea, select, [contenteditable=true]")) return true;
  return element.tagName === "INPUT" && !["checkbox", "radio", "button", "submit"].includes(element.type);
}

/** Starts listening; called once. */
export function listen() {
  let first = "";
  let since = 0;
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (isField(event.target)) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const pair = first && event.timeStamp - since < PATIENCE ? action(`${first} ${event.key}`) : null;
    first = "";
    const single = pair ? null : action(event.key);
    if (pair || single) {
      event.preventDefault();
      (pair || single)(event);
    } else if (layers.some((layer) => Object.keys(layer.current).some((key) => key.startsWith(`${event.key} `)))) {
      first = event.key;
      since = event.timeStamp;
    }
  });
}

/** Moves the focus to the next or previous element that bears `data-row`; nothing is remembered but the focus itself. */
export function moveRow(by) {
  const rows = [...document.querySelectorAll("main [data-row]")].filter((row) => row.checkVisibility());
  if (!rows.length) return;
  const holder = document.activeElement?.closest?.("tr, li, [data-holder]");
  const at = rows.findIndex((row) => row === document.activeElement || (holder && holder.contains(row)));
  const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + by));
  focusRow(rows[next]);
}

export function focusRow(row) {
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

/** The row that leads to an address or to a page above it: where one was before going down there. */
export function rowOf(address) {
  const path = (text) => text.split("?")[0];
  const rows = [...document.querySelectorAll("main a[data-row]")].filter((row) => row.checkVisibility());
  return rows.find((row) => `${path(address)}/`.startsWith(`${path(row.getAttribute("href"))}/`));
}
