import assert from "node:assert/strict";
import test from "node:test";
import { byParagraph, named, sentences } from "../src/critique.js";
import { pieces } from "../src/mathtext.js";
import { COLOURINGS, reach, shade, spans } from "../src/tokens.js";

const math = (text, ...more) =>
  pieces(text, ...more)
    .filter((piece) => "math" in piece)
    .map((piece) => piece.math);
const joined = (text) =>
  pieces(text)
    .map((piece) => piece.text ?? piece.source)
    .join("");

test("mathematics is found, money is not", () => {
  assert.deepEqual(math("so $x^2$ and \\(y\\) and $$z$$ and \\[w\n+1\\]."), ["x^2", "y", "z", "w\n+1"]);
  assert.deepEqual(pieces("a $$z$$")[1], { math: "z", display: true, source: "$$z$$" });
  assert.deepEqual(math("it costs $5 and then $6 more"), []);
  assert.deepEqual(math("$5 or $ 7 and \\$x, $$ $$, $a\nb$"), []);
  assert.deepEqual(math("$a\\$b$ \\\\(no\\\\)"), ["a\\$b"]);
  assert.deepEqual(math("unclosed $x^2 and \\[ y"), []);
});

test("pieces joined are the text, within limits", () => {
  for (const text of ["", "plain", "$x$", "a$x$b$$y$$c\\(", "$".repeat(999), "\\[".repeat(500), "$x$ ".repeat(300)])
    assert.equal(joined(text), text);
  assert.equal(math("$x$ ".repeat(300)).length, 200);
  const left = { count: 3 };
  assert.equal(math("$x$ $x$", left).length, 2);
  assert.equal(math("$x$ $x$", left).length, 1);
  assert.deepEqual(math(`$${"x".repeat(2001)}$`), []);
});

test("two million characters of openings take no quadratic time", () => {
  const text = "\\(".repeat(1_000_000);
  assert.equal(pieces(text).length, 1);
});

test("sentences and the paragraphs that they name", () => {
  const critique =
    "Paragraph 0 is right. In <paragraph_1>, 3.5 is taken for 4! Steps 2-3 follow.\n2. Step 9 is none. The index is \\boxed{1}";
  const list = sentences(critique, ["", "", "", ""]);
  assert.equal(list.map((sentence) => sentence.text).join(""), critique);
  assert.deepEqual(
    list.map((sentence) => sentence.paragraphs),
    [[0], [1], [2, 3], [], []],
  );
  assert.deepEqual(byParagraph(list, 4), [[0], [1], [2], [2]]);
  assert.deepEqual(named("paragraph **2**, paragraphs 0 and 1, step #3, paragraph 1 to 900000", 4), [2, 0, 1, 3]);
  assert.deepEqual(sentences("", ["a"]), []);
});

test("what a critique quotes begins a sentence of its own", () => {
  const critique = "29*2=58?58 ok 58+5=63?63 ok 63+9=62?72 wrong \\boxed{2}";
  const list = sentences(critique, ["29*2=58", "58+5=63", "63+9=62", "62+5=67", "#7"]);
  assert.deepEqual(list, [
    { text: "29*2=58?58 ok ", paragraphs: [0] },
    { text: "58+5=63?63 ok ", paragraphs: [1] },
    { text: "63+9=62?72 wrong \\boxed{2}", paragraphs: [2] },
  ]);
});

test("colours: strength by magnitude, sign by class, what is not recorded is said", () => {
  assert.deepEqual(
    [0, 0.1, 1, 5, -0.5, null, NaN].map((value) => shade(value, 1)),
    ["t0", "tp1", "tp5", "tp5", "tn3", "tx", "tx"],
  );
  assert.equal(reach([null, 0, -2, 1]), 2);
  assert.equal(reach([...Array(99).fill(1), 1000]), 1);
  assert.equal(reach([]), 1e-6);
  assert.deepEqual(spans(["a", "a", "b", "a"]), [
    [0, 2, "a"],
    [2, 3, "b"],
    [3, 4, "a"],
  ]);
});

test("what a token is coloured by", () => {
  const tokens = { ids: [1, 2, 3], logprobs: [-1, null, -3], trained: [-1.5, -2, -2], entropy: null, mask: [1, 0, 1], advantage: -0.5 };
  assert.deepEqual(COLOURINGS.advantage.values(tokens), [-0.5, 0, -0.5]);
  assert.deepEqual(COLOURINGS.difference.values(tokens), [0.5, null, -1]);
  assert.equal(COLOURINGS.entropy.values(tokens), null);
  assert.deepEqual(COLOURINGS.mask.values({ ...tokens, mask: null }), [1, 1, 1]);
  assert.equal(COLOURINGS.difference.values({ ...tokens, trained: null }), null);
});
