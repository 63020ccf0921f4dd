// Draws a step's wall clock on a canvas: lanes of the ranks, lines of the rollouts. A rollout is [g, sample, rank, sampled, verified, asked,
// first token, answered, window], in seconds after the step began, null where a time was not recorded.

export const TIMES = [
  [3, "sampled"],
  [4, "verified"],
  [5, "asked"],
  [6, "first token"],
  [7, "answered"],
];

/** The last moment that is known of a rollout, or null. */
export const end = (row) =>
  row.slice(3, 8).reduce((last, value) => (value === null || (last !== null && last > value) ? last : value), null);

/** Seconds from the first known moment of a rollout to the last: how long it was on its way once sampled. */
export function span(row) {
  const known = row.slice(3, 8).filter((value) => value !== null);
  return known.length ? Math.max(...known) - Math.min(...known) : null;
}

// A rollout's window: that of its optimizer step, and this many times that step's number (engine/schedule.py).
const UPDATE = 10000;

/** "update 0, window 3", or null. */
export function windowName(window) {
  return window === null || window === undefined ? null : `update ${Math.floor(window / UPDATE)}, window ${window % UPDATE}`;
}

/** When each optimizer step of the first rank ended. */
export const updates = (clock) => (clock.ranks[0]?.details || []).filter(([name]) => name === "optimizer").map(([, , to]) => to);

const PHASES = {
  generate: "series-0",
  verify: "series-2",
  judge_wait: "series-1",
  judge_wake: "series-1",
  judge_sleep: "series-1",
  rank_wait: "strong-line",
  train: "series-3",
  sync: "series-2",
};
const [LANE, BAND, THIN] = [44, 20, 8];

/** "Nice" marks from 0 to `last`: at most `most` of them. */
export function ticks(last, most) {
  const rough = last / most;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= rough);
  const out = [];
  for (let i = 0; i * step <= last * (1 + 1e-9); i += 1) out.push(Number((i * step).toPrecision(6)));
  return out;
}

function axis(pen, colours, { last, width, y, top }) {
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "top";
  for (const value of ticks(last, Math.max(2, Math.floor(width / 90)))) {
    const x = Math.round((value / last) * (width - 1));
    pen.fillStyle = colours.line;
    pen.fillRect(x, top, 1, y - top);
    pen.fillStyle = colours.quiet;
    pen.textAlign = value === 0 ? "left" : x > width - 30 ? "right" : "center";
    pen.fillText(`${value} s`, x, y + 3);
  }
}

/** The name of a phase's colour. */
export const phaseColour = (name) => (Object.hasOwn(PHASES, name) ? PHASES[name] : "series-4");

/** Each rank's phases as a band with its name where there is room, and below it thinly what it did within. */
export function drawLanes(pen, colours, { clock, last, width }) {
  axis(pen, colours, { last, width, y: clock.ranks.length * LANE, top: 0 });
  const x = (time) => (time / last) * width;
  clock.ranks.forEach(({ rank, phases, details }, i) => {
    const y = i * LANE + 4;
    // Phases stand within phases (waiting for verdicts within training): the long ones first, then all names.
    const long = ([, from, to]) => (to ?? last) - from;
    const bands = [...phases].sort((a, b) => long(b) - long(a));
    for (const [name, from, to] of bands) {
      pen.fillStyle = colours[phaseColour(name)];
      pen.fillRect(x(from), y, Math.max(1, x((to ?? last) - from) - 1), BAND);
    }
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    pen.fillStyle = colours.ground;
    for (const [name, from, to] of clock.ranks.length < 33 ? bands : []) {
      if (pen.measureText(name).width < x((to ?? last) - from) - 6) pen.fillText(name, x(from) + 3, y + BAND / 2);
    }
    pen.fillStyle = colours["strong-line"];
    for (const [, from, to] of details || []) pen.fillRect(x(from), y + BAND + 2, Math.max(0.75, x((to ?? last) - from) - 0.5), THIN);
    pen.fillStyle = colours.quiet;
    pen.textAlign = "right";
    if (clock.ranks.length < 33) pen.fillText(`rank ${rank}`, width - 2, y + BAND + THIN / 2 + 2);
  });
}

/** A line a rollout: sampling to its end, verifying, the judge's queue, its writing; a mark where the update that it trained in ended. */
export function drawRollouts(pen, colours, { rows, last, width, tall, ends }) {
  axis(pen, colours, { last, width, y: rows.length * tall, top: 0 });
  const thick = Math.max(1, tall - 1);
  const x = (time) => (time / last) * width;
  rows.forEach((row, i) => {
    for (const [from, to, colour, strength] of parts(row)) {
      pen.fillStyle = colours[colour];
      pen.globalAlpha = strength;
      pen.fillRect(x(from), i * tall, Math.max(1, x(to - from)), thick);
    }
    pen.globalAlpha = 1;
    const end = row[8] === null ? undefined : ends[Math.floor(row[8] / UPDATE)];
    pen.fillStyle = colours.ink;
    if (end !== undefined) pen.fillRect(x(end) - 1, i * tall, 3, thick);
  });
}

/** What is known of a rollout as stretches: [from, to, colour, strength]. */
function parts(row) {
  const [sampled, verified, asked, first, answered] = row.slice(3, 8);
  const all = [
    [0, sampled, "series-0", 0.45],
    [sampled, verified, "series-2", 1],
    [asked, first ?? answered, "series-1", 1],
    [first, answered, "series-3", 1],
  ];
  return all.filter(([from, to]) => from !== null && to !== null);
}
