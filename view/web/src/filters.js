// Filters and orders of a step's groups; names are those of the address.

const LETTERS = { flawed: "f", unknown: "u", wrong: "w", noanswer: "n", sound: "s" };
const FLAGS = { disagree: "disagree", flipped: "flipped", cut: "cut" };

export const FILTERS = {
  flawed: "right but flawed",
  unknown: "no verdict",
  disagree: "judges disagree",
  flipped: "sign turned by λ",
  cut: "cut",
  wrong: "wrong",
  noanswer: "no answer",
  sound: "sound",
};

/** Samples of a group that a filter keeps: [index…]; all of them without a filter, or with one that no page knows. */
export function matches(group, filter) {
  const all = [...group.cells].map((_, i) => i);
  if (Object.hasOwn(LETTERS, filter)) return all.filter((i) => group.cells[i] === LETTERS[filter]);
  if (Object.hasOwn(FLAGS, filter)) return all.filter((i) => (group[FLAGS[filter]] || [])[i]);
  return all;
}

const mean = (values) => {
  const said = (values || []).filter((value) => value !== null && value !== undefined);
  return said.length ? said.reduce((sum, value) => sum + value, 0) / said.length : null;
};
export const meanLength = (group) => mean(group.lengths);
const longest = (group) => Math.max(-1, ...(group.lengths || []).map((value) => value ?? -1));
const strength = (group) => mean((group.advantages || []).map((value) => (value === null ? null : Math.abs(value)))) ?? -1;
const doubts = (group) => (group.disagree || []).filter(Boolean).length + matches(group, "unknown").length / 1000;

/** name → [what it says, the measure by which the largest stands first; null = as they were sampled]. */
export const ORDERS = {
  order: ["as sampled", null],
  signal: ["signal", strength],
  length: ["longest", longest],
  disagree: ["disagreement", doubts],
};

/** The groups in an order of ORDERS, equal ones as sampled; an unknown name changes nothing. */
export function ordered(groups, name) {
  const measure = Object.hasOwn(ORDERS, name ?? "") ? ORDERS[name][1] : null;
  if (!measure) return groups;
  const rated = groups.map((group) => [measure(group), group]);
  return rated.sort((a, b) => b[0] - a[0]).map(([, group]) => group);
}

const KINDS = ["train", "eval", "replaced"];

/** The kind of a step's page: what the address says, where that is one, else the first that the run has of this step; "" while that is not known. */
export function kindOf(route, run) {
  if (KINDS.includes(route.query.kind)) return route.query.kind;
  if (!run) return "";
  return KINDS.find((kind) => (run.steps[kind] || []).includes(route.step)) || "train";
}

/** Steps before and after one, of all that the run has of any kind: [number or null, number or null]. */
export function around(run, step, kind) {
  const steps = [...new Set(run ? run.steps[kind] || [] : [])].sort((a, b) => a - b);
  return [steps.filter((each) => each < step).at(-1) ?? null, steps.find((each) => each > step) ?? null];
}
