import assert from "node:assert/strict";
import test from "node:test";
import { flips, lamOf, rescore, shift, sign } from "../src/algebra.js";

const near = (found, wanted) => found.forEach((value, i) => assert.ok(Math.abs(value - wanted[i]) < 1e-6, `${found} is not ${wanted}`));
const rule = (base, flawed, kept = base.map(() => true)) => ({ lam: 1, normalize_std: true, base, flawed, kept });
const [n, y] = [false, true];

test("the worked example of fapo/rewards.py", () => {
  const scored = rescore(rule([1, 1, -1, -1], [n, y, n, n]), 1);
  assert.deepEqual(scored.rewards, [1, 0, -1, -1]);
  near(scored.advantages, [1.3055811, 0.2611162, -0.7833486, -0.7833486]);
});

test("the worked example of kernels/advantage.py: sample deviation of eight", () => {
  const group = rule([1, 1, 0, 0, -1, -1, -1, -1], Array(8).fill(n));
  near(rescore(group, 0).advantages, [1.4101886, 1.4101886, 0.2820377, 0.2820377, ...Array(4).fill(-0.8461131)]);
});

test("without division, with one that left, of equal rewards, of one", () => {
  assert.deepEqual(rescore({ ...rule([1, -1, -1, -1], Array(4).fill(n)), normalize_std: false }, 1).advantages, [1.5, -0.5, -0.5, -0.5]);
  const left = rescore(rule([1, 1, -1, -1], [n, n, n, n], [y, n, y, y]), 1);
  near(left.advantages, [1.1546996, 0, -0.5773498, -0.5773498]);
  assert.deepEqual(rescore(rule([1, 1, 1], [n, n, n]), 1).advantages, [0, 0, 0]);
  assert.deepEqual(rescore(rule([1, -1], [n, n], [y, n]), 1).advantages, [0, 0]);
  assert.deepEqual(rescore(rule([1, null, -1], [n, n, n]), 1).rewards, [1, null, -1]);
});

test("at λ = 0 one without verdict stays", () => {
  const group = { ...rule([1, 1, -1], [n, n, n], [y, n, y]), normalize_std: false, kept_zero: [y, y, y] };
  near(rescore(group, 0).advantages, [2 / 3, 2 / 3, -4 / 3]);
  assert.deepEqual(rescore(group, 1).advantages, [1, 0, -1]);
});

test("the shift: a flawed rollout's sign is that of 2β − λ(α + β)", () => {
  assert.deepEqual(shift(3, 2, 1), { rho: 1.5, threshold: 1, past: true, tie: false });
  assert.deepEqual(shift(2, 2, 1), { rho: 1, threshold: 1, past: false, tie: true });
  assert.deepEqual(shift(1, 0, 1).rho, null);
  assert.deepEqual(shift(3, 2, 0), { rho: 1.5, threshold: null, past: false, tie: false });
  for (const [alpha, beta, gamma] of [
    [3, 2, 1],
    [1, 2, 3],
    [4, 1, 2],
    [2, 3, 1],
  ])
    for (const lam of [0.25, 0.8, 1, 4 / 3, 2, 3]) {
      const base = [...Array(alpha).fill(1), ...Array(beta).fill(-1), ...Array(gamma).fill(1)];
      const flawed = base.map((_, i) => i >= alpha + beta);
      const found = sign(rescore(rule(base, flawed), lam).advantages.at(-1));
      assert.equal(found, sign(2 * beta - lam * (alpha + beta)), `${alpha} ${beta} ${gamma} ${lam}`);
    }
});

test("who flips", () => {
  const group = rule([1, 1, 1, 1, -1, -1], [n, n, n, y, n, n]);
  assert.deepEqual(flips(group, 1, 1), []);
  assert.deepEqual(flips(group, 1, 0), [{ i: 3, from: 1, to: -1 }]);
  assert.deepEqual(flips(group, 0, 1), [{ i: 3, from: -1, to: 1 }]);
});

test("λ of an address", () => {
  assert.deepEqual(
    ["1.3", "", null, "x", "-1", "1e9", "0"].map((text) => lamOf(text, 7)),
    [1.3, 7, 7, 7, 7, 7, 0],
  );
});
