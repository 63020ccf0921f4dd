// What a curve needs of arithmetic: which points to draw, where ticks stand, what was recorded at a step.

/**
 * Of many points those that a curve of some pixels can show: in each pixel's column the first, least, greatest and last value.
 *
 * @param {number[]} xs ascending
 * @param {(number|null)[]} ys null: not recorded, passed over
 * @param {number} columns pixels
 * @returns {number[]} indices, ascending; all that are recorded where that is no more than four a column
 */
export function thin(xs, ys, columns) {
  const all = [];
  for (let i = 0; i < ys.length; i++) if (ys[i] !== null && ys[i] !== undefined) all.push(i);
  if (all.length <= 4 * columns) return all;
  const first = xs[all[0]];
  const span = xs[all.at(-1)] - first || 1;
  const kept = [];
  let at = 0;
  while (at < all.length) {
    const column = Math.min(columns - 1, Math.floor(((xs[all[at]] - first) / span) * columns));
    const from = at;
    let least = at;
    let most = at;
    for (; at < all.length && Math.min(columns - 1, Math.floor(((xs[all[at]] - first) / span) * columns)) === column; at++) {
      if (ys[all[at]] < ys[all[least]]) least = at;
      if (ys[all[at]] > ys[all[most]]) most = at;
    }
    for (const one of [...new Set([from, least, most, at - 1])].sort((a, b) => a - b)) kept.push(all[one]);
  }
  return kept;
}

/** Round numbers from low to high, about `wanted` of them, both ends inside: ticks(0, 1, 4) → [0, 0.25, 0.5, 0.75, 1]. */
export function ticks(low, high, wanted) {
  const rough = (high - low) / Math.max(1, wanted);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / width - 1e-9); i * width <= high + width * 1e-9; i++) found.push(Number((i * width).toPrecision(12)));
  return found;
}

/** Lowest and highest of what is recorded in several lists, or null; a single value gets room around it. */
export function extent(lists) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of lists) {
    for (const value of list) {
      if (value === null || value === undefined) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return null;
  if (low === 0 && high === 0) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low, high];
}

/** Index of the last recorded value at or before a step, -1 if there is none. */
export function lastAt(xs, ys, step) {
  let low = 0;
  let high = xs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= step) low = middle + 1;
    else high = middle;
  }
  for (let i = low - 1; i >= 0; i--) if (ys[i] !== null && ys[i] !== undefined) return i;
  return -1;
}

/** All steps of several lists, ascending, each once. */
export function union(lists) {
  return [...new Set(lists.flat())].sort((a, b) => a - b);
}
