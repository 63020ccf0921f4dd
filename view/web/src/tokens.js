// How a token is coloured: a class of app.css, one of few steps, so that a theme decides the colours. Strength is shown by lightness, the sign
// by the line below as well (solid above 0, dashed below), so that it reads in grey.

const STEPS = 5;

/** What a token can be coloured by: name → {says, values(tokens): [number|null…] | null, signed, unit}. null: not recorded. */
export const COLOURINGS = {
  advantage: { says: "advantage", signed: true, values: (t) => advantages(t) },
  entropy: { says: "entropy", signed: false, unit: "nats", values: (t) => t.entropy },
  difference: { says: "sampler − trainer", signed: true, unit: "nats", values: (t) => differences(t) },
  mask: { says: "loss mask", signed: false, values: (t) => t.mask ?? t.ids.map(() => 1) },
};

/** The rollout's advantage where a token trains, 0 where it is the environment's. */
function advantages(tokens) {
  if (tokens.advantage === null || tokens.advantage === undefined) return null;
  return tokens.ids.map((_, i) => (tokens.mask && !tokens.mask[i] ? 0 : tokens.advantage));
}

/** Log-probability of the sampler less that of the trainer. */
function differences(tokens) {
  if (!tokens.trained) return null;
  return tokens.logprobs.map((value, i) => (value === null || tokens.trained[i] === null ? null : value - tokens.trained[i]));
}

/** The value that has the strongest colour: the 98th percentile of magnitudes, so that one odd token does not pale all others; at least `least`. */
export function reach(values, least = 1e-6) {
  const sorted = values
    .filter((value) => value !== null && Number.isFinite(value))
    .map(Math.abs)
    .sort((a, b) => a - b);
  return sorted.length ? Math.max(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))], least) : least;
}

/** Class of a value: `t0` (nothing), `tp1` … `tp5`, `tn1` … `tn5` (below 0), `tx` where it was not recorded. */
export function shade(value, most) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "tx";
  const step = Math.min(STEPS, Math.ceil((Math.abs(value) / most) * STEPS - 1e-9));
  return step === 0 ? "t0" : `t${value < 0 ? "n" : "p"}${step}`;
}

/** Neighbours of one class as runs [from, to, class], so that a long rollout makes few elements. */
export function spans(classes) {
  const out = [];
  classes.forEach((name, i) => {
    const last = out[out.length - 1];
    if (last && last[2] === name) last[1] = i + 1;
    else out.push([i, i + 1, name]);
  });
  return out;
}
