// Rewards and advantages of one group, computed once more in the page: what the engine does (fapo/rewards.py, kernels/advantage.py), for
// any λ. `rule` is the group's own: {lam, normalize_std, base: [reward before λ], flawed: [bool], kept: [bool], kept_zero: [bool]}; who stays at
// λ = 0 stands in kept_zero, as a rollout without verdict leaves its group only where verdicts count.

const STD_EPSILON = 1e-6;
// Above what rounding leaves of an advantage that is 0, below the next one (fapo/flips.py).
const ZERO = 1e-9;

export const sign = (value) => (Math.abs(value) < ZERO ? 0 : value > 0 ? 1 : -1);

/** {rewards, advantages} of each rollout: reward = base − λ·flawed; advantage = (reward − mean) ÷ (sample deviation + 1e-6), or without the
 * division; mean and deviation over the kept ones. One that left has reward as the others and advantage 0; so has a group of one, or of
 * equal rewards. */
export function rescore(rule, lam) {
  const rewards = rule.base.map((base, i) => (base === null ? null : base - (rule.flawed[i] ? lam : 0)));
  const who = lam > 0 ? rule.kept : (rule.kept_zero ?? rule.kept);
  const stays = (i) => who[i] && rewards[i] !== null;
  const kept = rewards.filter((_, i) => stays(i));
  const flat = kept.length < 2 || kept.every((reward) => reward === kept[0]);
  if (flat) return { rewards, advantages: rewards.map(() => 0) };
  const mean = kept.reduce((sum, reward) => sum + reward, 0) / kept.length;
  const square = kept.reduce((sum, reward) => sum + (reward - mean) ** 2, 0);
  const over = rule.normalize_std ? Math.sqrt(square / (kept.length - 1)) + STD_EPSILON : 1;
  return { rewards, advantages: rewards.map((reward, i) => (stays(i) ? (reward - mean) / over : 0)) };
}

/** ρ = α ÷ β (null without wrong rollouts: none is pushed down by them), the threshold 2/λ − 1 (null at λ = 0: never), and whether the group
 * is past it: flawed rollouts are then pushed down. By the sign of 2β − λ(α + β), which needs no division. */
export function shift(alpha, beta, lam) {
  const over = sign(2 * beta - lam * (alpha + beta));
  return { rho: beta ? alpha / beta : null, threshold: lam > 0 ? 2 / lam - 1 : null, past: alpha + beta > 0 && over < 0, tie: over === 0 };
}

/** Rollouts whose advantage has another sign at `lam` than at `against`: [{i, from, to}] with signs −1, 0, 1. */
export function flips(rule, lam, against) {
  const [now, before] = [rescore(rule, lam).advantages, rescore(rule, against).advantages];
  return now.flatMap((value, i) => (sign(value) === sign(before[i]) ? [] : [{ i, from: sign(before[i]), to: sign(value) }]));
}

/** λ of an address or a field: a finite number from 0 to 100, else `otherwise`. */
export function lamOf(text, otherwise) {
  const value = text === "" || text === null || text === undefined ? NaN : Number(text);
  return Number.isFinite(value) && value >= 0 && value <= 100 ? value : otherwise;
}
