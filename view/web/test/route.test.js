import assert from "node:assert/strict";
import test from "node:test";
import { changed, format, parse, up } from "../src/route.js";

const ADDRESSES = [
  "#/",
  "#/?sort=-right&chosen=a,b",
  "#/compare?runs=a,b&names=reward/correct,loss/policy",
  "#/run/small",
  "#/run/seeds=2Fa=2Eb/judge",
  "#/run/small/step/12?kind=train&filter=flawed&sort=signal",
  "#/run/small/step/12/anatomy",
  "#/run/small/step/12/group/17?lam=1.3",
  "#/run/small/step/12/rollout/17/3?colour=advantage&source=1",
  "#/run/small/prompt?id=arith-train:0:3",
  "#/run/small/find?q=a+b",
];

for (const address of ADDRESSES) {
  test(`${address} is read and written back`, () => {
    assert.notEqual(parse(address).page, "unknown");
    assert.equal(format(parse(address)), address);
  });
}

test("a text of any letters passes through the query", () => {
  for (const q of ["a&b=c#d?e", "100 % + 1", "\u202e\u0000é漢😀", "../../x", '"><script>']) {
    assert.equal(parse(format({ page: "find", key: "k", query: { q } })).query.q, q);
  }
});

test("what is no address of a page is unknown", () => {
  for (const address of [
    "#/runs",
    "#/run",
    "#/run/a b",
    "#/run/..",
    "#/run/.a",
    "#/run/a/step/x",
    "#/run/a/step/-1",
    "#/run/a/step/1/rollout/2",
    "#/run/%2e%2e",
  ]) {
    assert.equal(parse(address).page, "unknown", address);
  }
});

test("a route that lacks a part is refused", () => {
  assert.throws(() => format({ page: "group", key: "a", step: 1 }), /needs g/);
  assert.throws(() => format({ page: "nowhere" }), /nowhere/);
});

test("a level up keeps the kind and drops filters", () => {
  const at = parse("#/run/a/step/1/rollout/2/3?kind=eval&colour=mask");
  const places = [];
  for (let route = at; route; route = up(route)) places.push(format(route));
  assert.deepEqual(places.slice(1), ["#/run/a/step/1/group/2?kind=eval", "#/run/a/step/1?kind=eval", "#/run/a", "#/"]);
});

test("a changed query leaves the rest, and empty values go", () => {
  const route = parse("#/run/a/step/1?kind=eval&filter=flawed");
  assert.equal(changed(route, { filter: "", sort: "signal" }), "#/run/a/step/1?kind=eval&sort=signal");
  assert.equal(changed(route, { source: true }), "#/run/a/step/1?kind=eval&filter=flawed&source=1");
});
