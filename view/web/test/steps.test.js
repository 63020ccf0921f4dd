import assert from "node:assert/strict";
import test from "node:test";
import { around, kindOf, matches, ordered } from "../src/filters.js";
import { hitsIn } from "../src/search.js";
import { end, span, ticks, windowName } from "../src/wallclock.js";

const group = {
  cells: "sfwun",
  disagree: [false, true, false, false, false],
  flipped: [true, false, false, false, false],
  cut: [false, false, false, false, true],
  lengths: [1, 2, 3, 4, 5],
  advantages: [1, -1, 0, null, 0],
};

test("filters keep samples, an unknown one keeps all", () => {
  const kept = ["sound", "flawed", "wrong", "unknown", "noanswer", "disagree", "flipped", "cut", "", "toString"].map((name) =>
    matches(group, name),
  );
  assert.deepEqual(kept, [[0], [1], [2], [3], [4], [1], [0], [4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]);
});

test("orders: the largest first, equal ones as sampled, what is not recorded last", () => {
  const groups = [
    { g: 0, cells: "s" },
    { ...group, g: 1 },
    { ...group, g: 2, lengths: [9] },
    { ...group, g: 3, advantages: [2], disagree: [true, true] },
  ];
  const order = (name) => ordered(groups, name).map((each) => each.g);
  assert.deepEqual(["order", "signal", "length", "disagree", "constructor"].map(order), [
    [0, 1, 2, 3],
    [3, 1, 2, 0],
    [2, 1, 3, 0],
    [3, 1, 2, 0],
    [0, 1, 2, 3],
  ]);
});

test("kind and neighbours of a step", () => {
  const run = { steps: { train: [1, 2, 4], eval: [0, 4], replaced: [] } };
  assert.deepEqual(
    [0, 1, 4, 9].map((step) => kindOf({ step, query: {} }, run)),
    ["eval", "train", "train", "train"],
  );
  assert.equal(kindOf({ step: 4, query: { kind: "eval" } }, undefined), "eval");
  assert.equal(kindOf({ step: 4, query: {} }, undefined), "");
  assert.deepEqual(
    [around(run, 2, "train"), around(run, 0, "eval"), around(undefined, 1, "train")],
    [
      [1, 4],
      [null, 4],
      [null, null],
    ],
  );
});

test("a bundle's find", async () => {
  const texts = {
    1: [
      [0, 0, "say Hello there"],
      [0, 1, "nothing"],
    ],
    2: [[3, 1, "HELLO"]],
  };
  const found = await hitsIn("hello", [1, 2], async (step) => texts[step]);
  assert.deepEqual(
    found.hits.map((hit) => [hit.step, hit.g, hit.sample, hit.before, hit.hit, hit.after]),
    [
      [1, 0, 0, "say ", "Hello", " there"],
      [2, 3, 1, "", "HELLO", ""],
    ],
  );
  assert.deepEqual([found.searched, found.more], [[1, 2], false]);
  const many = await hitsIn("a", [1, 2], async () => Array.from({ length: 150 }, (_, i) => [i, 0, "a"]));
  assert.deepEqual([many.hits.length, many.searched, many.more], [200, [1, 2], true]);
});

test("the wall clock: ends, spans, marks", () => {
  assert.deepEqual([end([0, 0, 0, 1, 2, null, null, null, 0]), end([0, 0, 0, null, null, null, null, null, null])], [2, null]);
  assert.deepEqual([span([0, 0, 0, 1, null, null, null, 4.5, 0]), span([0, 0, 0, null, null, null, null, null, 0])], [3.5, null]);
  assert.deepEqual(ticks(13.4, 7), [0, 2, 4, 6, 8, 10, 12]);
  assert.deepEqual(ticks(0.3, 3), [0, 0.1, 0.2, 0.3]);
  assert.deepEqual([windowName(20003), windowName(0), windowName(null)], ["update 2, window 3", "update 0, window 0", null]);
});
