// Which sentences of a critique speak of which paragraph of the solution.

const SENTENCE = /(?:\.(?=\s)|[!?](?=\s)|\n)+\s*/g;
// paragraph 3 · <paragraph_3> · </paragraph_3> · paragraphs 2-4 · Step 3 · step #3 · paragraph **3**
const NAMED = /<?\/?\b(?:paragraph|step)s?[\s_#:*(]*(\d{1,4})(?:\s*(?:-|–|to|and|through)\s*(\d{1,4}))?/gi;
const WIDEST = 50;

/** Sentences in order with the paragraphs that each names: [{text, paragraphs: [index…]}]; the texts joined are the critique. A number that
 * is no paragraph of the `count` is not taken for one. A list point without a name of its own (a line "3." alone) belongs to what follows. */
export function sentences(critique, count) {
  const out = [];
  let from = 0;
  for (const match of critique.matchAll(SENTENCE)) {
    const end = match.index + match[0].length;
    const text = critique.slice(from, end);
    if (/^\s*\d+\.\s*$/.test(text)) continue;
    out.push({ text, paragraphs: named(text, count) });
    from = end;
  }
  if (from < critique.length) out.push({ text: critique.slice(from), paragraphs: named(critique.slice(from), count) });
  return out;
}

/** Indices that a text names, each once, in order; a range names all of it. */
export function named(text, count) {
  const out = new Set();
  for (const [, first, last] of text.matchAll(NAMED)) {
    const [a, b] = [Number(first), last === undefined ? Number(first) : Number(last)];
    const ends = b < a || b - a > WIDEST ? [a, a] : [a, b];
    for (let i = ends[0]; i <= ends[1]; i += 1) if (i < count) out.add(i);
  }
  return [...out];
}

/** Of each paragraph the sentences (places in `list`) that name it. */
export function byParagraph(list, count) {
  const out = Array.from({ length: count }, () => []);
  list.forEach((sentence, at) => sentence.paragraphs.forEach((i) => out[i].push(at)));
  return out;
}
