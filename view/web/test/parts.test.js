import assert from "node:assert/strict";
import test from "node:test";
import { isEnd, linesOf } from "../src/measures.js";
import { merge } from "../src/merge.js";
import * as numbers from "../src/parts/numbers.js";
import { oneLine, pieces, visible } from "../src/parts/safe.js";
import { extent, lastAt, thin, ticks, union } from "../src/parts/thin.js";
import { kindOf, nextOpen, routeOf } from "../src/queue.js";

test("what is not recorded is a dash in every format, and 0 is not", () => {
  const { share, number, signed, duration, moment, recent, fixed, mebibytes, plain } = numbers;
  for (const show of [share, number, signed, duration, moment, recent, fixed, mebibytes, plain]) {
    assert.equal(show(null), "—");
    assert.equal(show(undefined), "—");
    assert.notEqual(show(0), "—");
  }
  assert.equal(numbers.interval(null, 0.5), "—");
  assert.equal(numbers.count(null, "step"), "— steps");
});

test("numbers as people read them", () => {
  assert.equal(numbers.share(0.4853), "48.5 %");
  assert.equal(numbers.interval(0.2222, 0.479), "22–48 %");
  assert.deepEqual([0.00016, 12345.6, 3, 0.48534, -2.5e-14].map(numbers.number), ["1.6e-4", "12,346", "3", "0.4853", "-2.5e-14"]);
  assert.deepEqual(
    [0.1317, -0.098, 0.0001].map((value) => numbers.signed(value)),
    ["+0.132", "−0.098", "0"],
  );
  assert.deepEqual([0.42, 59.96, 250, 3599.9, 11100, 187200].map(numbers.duration), [
    "0.42 s",
    "60.0 s",
    "4 min 10 s",
    "59 min 59 s",
    "3 h 05 min",
    "2 d 4 h",
  ]);
  assert.deepEqual([812.4, 12697].map(numbers.mebibytes), ["812 MiB", "12.4 GiB"]);
  assert.deepEqual([["oracle", 0.05], "", false].map(numbers.plain), ['["oracle",0.05]', "(empty)", "false"]);
});

test("hidden characters are shown, and no text is lost", () => {
  assert.deepEqual(pieces("a\u202eb"), [
    { text: "a", hidden: false },
    { text: "⟨U+202E⟩", hidden: true },
    { text: "b", hidden: false },
  ]);
  assert.equal(visible("\u001b[31mred\u0000\u200b\u2066\ud800\u{e0041}"), "⟨ESC⟩[31mred⟨U+0000⟩⟨U+200B⟩⟨U+2066⟩⟨U+D800⟩⟨U+E0041⟩");
  assert.equal(visible("tab\tline\nÄ漢😀"), "tab\tline\nÄ漢😀");
  assert.deepEqual(
    pieces("a\r\nb\rc")
      .map((piece) => piece.text)
      .join(""),
    "a\nb⟨CR⟩c",
  );
  assert.equal(oneLine("a\n\n  b   c", 4), "a b…");
});

test("thinning keeps each column's ends, least and greatest", () => {
  const xs = Array.from({ length: 5000 }, (_, i) => i + 1);
  const ys = xs.map((x) => Math.sin(x / 50));
  ys[2345] = 9;
  ys[2346] = -9;
  ys[17] = null;
  const kept = thin(xs, ys, 300);
  assert.ok(kept.length <= 4 * 300 && kept.length > 600, String(kept.length));
  assert.ok(kept.includes(2345) && kept.includes(2346) && kept.includes(0) && kept.includes(4999) && !kept.includes(17));
  assert.deepEqual(
    kept,
    [...kept].sort((a, b) => a - b),
  );
  assert.equal(new Set(kept).size, kept.length);
  assert.deepEqual(thin([1, 2, 3], [5, null, 7], 300), [0, 2]);
});

test("ticks are round and inside", () => {
  assert.deepEqual(ticks(0, 1, 4), [0, 0.25, 0.5, 0.75, 1]);
  assert.deepEqual(ticks(-0.3, 0.31, 3), [-0.25, 0, 0.25]);
  assert.deepEqual(ticks(3, 3, 4), [3]);
});

test("extent, union and the last value before a step", () => {
  assert.equal(extent([[null, undefined]]), null);
  assert.deepEqual(extent([[1, null], [3]]), [1, 3]);
  assert.deepEqual(extent([[0, 0]]), [0, 1]);
  assert.deepEqual(
    union([
      [1, 3],
      [2, 3],
    ]),
    [1, 2, 3],
  );
  assert.equal(lastAt([1, 2, 3, 4], [5, null, null, 8], 3), 0);
  assert.equal(lastAt([2, 3], [1, 1], 1), -1);
});

test("new rows take the place of the last ones; a series that begins later is null before", () => {
  const known = { steps: [1, 2, 3], series: { a: [1, 2, 3] }, eval_steps: [0], eval_series: { e: [9] } };
  const fresh = { steps: [3, 4], series: { a: [33, 4], b: [null, 7] }, eval_steps: [3], eval_series: { e: [8], f: [1] } };
  assert.deepEqual(merge(known, fresh, 2), {
    steps: [1, 2, 3, 4],
    series: { a: [1, 2, 33, 4], b: [null, null, null, 7] },
    eval_steps: [0, 3],
    eval_series: { e: [9, 8], f: [null, 1] },
  });
  const nothing = { steps: [], series: {}, eval_steps: [], eval_series: {} };
  assert.deepEqual(merge(known, nothing, 3), known);
  assert.deepEqual(merge(nothing, known, 0), known);
});

test("clip_low is a series, sound_low an end of sound's interval", () => {
  const names = ["loss/clip_low", "loss/clip_high", "sound", "sound_low"];
  assert.deepEqual(
    names.filter((name) => isEnd(name, names)),
    ["sound_low"],
  );
});

test("a curve has the lines that are recorded, evaluations a line a set", () => {
  const data = {
    steps: [1, 2],
    series: { "reward/correct": [0.1, 0.2], "loss/policy": [null, null] },
    eval_steps: [0],
    eval_series: { "eval/my/set.jsonl/accuracy": [0.5], "eval/my/set.jsonl/accuracy_low": [0.4], "eval/my/set.jsonl/accuracy_high": [0.6] },
  };
  const curve = { lines: { "reward/correct": "training", "loss/policy": "loss" }, evals: { accuracy: "" } };
  const lines = linesOf(curve, data);
  assert.deepEqual(
    lines.map((line) => [line.label, line.dots, line.low]),
    [
      ["training", false, undefined],
      ["my/set.jsonl", true, [0.4]],
    ],
  );
});

test("the queue goes on from a place, past what has a label, and round", () => {
  const one = (id, step, g, sample, label = null) => ({ id, step, g, sample, label });
  const all = [one("1/a:0:0/0", 1, 0, 0), one("1/a:0:1/2", 1, 1, 2, -1), one("2/t:0:1/0", 2, 1, 0), one("3/a:0:1/0", 3, null, 0)];
  assert.equal(nextOpen(all, {}), all[0]);
  assert.equal(nextOpen(all, { step: 1, g: 0, sample: 0 }), all[2]);
  assert.equal(nextOpen(all, { step: 2, g: 1, sample: 0 }), all[0]);
  assert.equal(nextOpen([all[1], all[3]], {}), null);
  assert.equal(kindOf(all[2], ["t"]), "eval");
  assert.deepEqual(routeOf(all[2], "k", ["t"]), { page: "rollout", key: "k", step: 2, g: 1, sample: 0, query: { kind: "eval" } });
  assert.deepEqual(routeOf(all[3], "k", []), { page: "prompt", key: "k", query: { id: "a:0:1" } });
});
