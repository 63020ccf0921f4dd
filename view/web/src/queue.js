// The queue of disagreements: what a person should read next, and where it stands.

const sideOf = (verdict) =>
  `${verdict?.kind ?? "nothing"}${verdict?.step === null || verdict?.step === undefined ? "" : ` at ${verdict.step}`}`;

/** "flawed at 3", "sound", "unknown". */
export { sideOf as verdictText };

/** An id is step/prompt/sample; a prompt's own id may hold slashes. */
const promptOf = (one) => one.id.split("/").slice(1, -1).join("/");

/** The kind of rollouts that a disagreement belongs to: as the server says, else by the set that its prompt's id begins with. */
export function kindOf(one, sets = []) {
  if (one.kind) return one.kind;
  return sets.some((set) => promptOf(one).startsWith(`${set}:`)) ? "eval" : "train";
}

/** The route of a disagreement's rollout; of its prompt where the server could not say in time which group it is in. */
export function routeOf(one, key, sets) {
  if (one.g === null || one.g === undefined) return { page: "prompt", key, query: { id: one.prompt_id ?? promptOf(one) } };
  const kind = kindOf(one, sets);
  return { page: "rollout", key, step: one.step, g: one.g, sample: one.sample, query: kind === "train" ? {} : { kind } };
}

/**
 * The next disagreement without a label after a place, round to the start; null where all have one.
 *
 * @param {Object[]} disagreements of judge.json
 * @param {{step?: number, g?: number, sample?: number}} place a route; one that is none of them: the first
 */
export function nextOpen(disagreements, place) {
  const at = disagreements.findIndex((one) => one.step === place.step && one.g === place.g && one.sample === place.sample);
  const open = (one) => (one.label === null || one.label === undefined) && one.g !== null && one.g !== undefined;
  const turned = [...disagreements.slice(at + 1), ...disagreements.slice(0, Math.max(0, at))];
  return turned.find(open) || null;
}
