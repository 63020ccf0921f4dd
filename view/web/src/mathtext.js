// Finds mathematics in a model's text: $…$, $$…$$, \(…\), \[…\]. Gives pieces, never HTML; what is not surely mathematics stays text.

export const LIMITS = { formulas: 200, length: 2000 };

const CLOSING = { $$: "$$", $: "$", "\\(": "\\)", "\\[": "\\]" };
const OPENING = /\\\\|\\\$|\$\$|\$|\\\(|\\\[/g;

/** Pieces of `text` in order, whose sources joined are the text: {text} or {math, display, source}. `left` is how many formulas may still be
 * drawn on this page ({count}, which is counted down). Longer formulas, and those beyond, are text. */
export function pieces(text, left = { count: LIMITS.formulas }, longest = LIMITS.length) {
  const out = [];
  const next = {};
  let [done, match] = [0, null];
  OPENING.lastIndex = 0;
  while (left.count > 0 && (match = OPENING.exec(text)) !== null) {
    const [open, start] = [match[0], match.index];
    if (!(open in CLOSING)) continue; // an escaped backslash or dollar
    const from = start + open.length;
    const end = endOf(text, open, from, longest, next);
    if (end < 0) continue;
    if (start > done) out.push({ text: text.slice(done, start) });
    done = end + CLOSING[open].length;
    out.push({ math: text.slice(from, end), display: open === "$$" || open === "\\[", source: text.slice(start, done) });
    left.count -= 1;
    OPENING.lastIndex = done;
  }
  if (done < text.length) out.push({ text: text.slice(done) });
  return out;
}

/** Where the formula that begins at `from` ends; −1: it is none. A single dollar is money unless it hugs what is between, on one line.
 * `next` remembers where the next closing of each kind is: a text of openings alone is searched once, not once for each. */
function endOf(text, open, from, longest, next) {
  const close = CLOSING[open];
  for (let at = following(text, close, from, next); at - from <= longest; at = following(text, close, at + 1, next)) {
    if (close[0] === "$" && escaped(text, at)) continue;
    const inner = text.slice(from, at);
    if (!inner.trim()) return -1;
    if (open !== "$") return at;
    const hugs = !/^\s|\s$/.test(inner) && !inner.includes("\n") && !/^\d/.test(text.slice(at + 1, at + 2));
    return hugs ? at : -1;
  }
  return -1;
}

function following(text, close, from, next) {
  if (!(next[close] >= from)) {
    const at = text.indexOf(close, from);
    next[close] = at < 0 ? Infinity : at;
  }
  return next[close];
}

function escaped(text, at) {
  let slashes = 0;
  while (text[at - 1 - slashes] === "\\") slashes += 1;
  return slashes % 2 === 1;
}
