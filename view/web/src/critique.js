// Which sentences of a critique speak of which paragraph of the solution.

const SENTENCE = /(?:\.(?=\s)|[!?](?=\s)|\n)+\s*/g;
// paragraph 3 · <paragraph_3> · </paragraph_3> · paragraphs 2-4 · Step 3 · step #3 · paragraph **3**
const NAMED = /<?\/?\b(?:paragraph|step)s?[\s_#:*(]*(\d{1,4})(?:\s*(?:-|–|to|and|through)\s*(\d{1,4}))?/gi;
const WIDEST = 50;
const [SHORTEST_QUOTE, MOST_QUOTED] = [5, 200];

/** Sentences in order with the paragraphs that each names or quotes: [{text, paragraphs: [index…]}]; the texts joined are the critique. A
 * number that is no paragraph is not taken for one; where a whole paragraph is quoted a sentence begins. A list point without a name of its own
 * (a line "3." alone) belongs to what follows. */
export function sentences(critique, paragraphs) {
  const quoted = quotes(critique, paragraphs);
  const out = [];
  let from = 0;
  const add = (end) => {
    const text = critique.slice(from, end);
    const own = quoted.has(from) ? [quoted.get(from)] : [];
    out.push({ text, paragraphs: [...new Set([...own, ...named(text, paragraphs.length)])] });
    from = end;
  };
  for (const end of cuts(critique, quoted))
    if (end > from && (quoted.has(end) || !/^\s*\d+\.\s*$/.test(critique.slice(from, end)))) add(end);
  if (from < critique.length) add(critique.length);
  return out;
}

/** Where sentences end, and where quotations begin, in order. */
function cuts(critique, quoted) {
  const ends = [...critique.matchAll(SENTENCE)].map((match) => match.index + match[0].length);
  return [...ends, ...quoted.keys()].sort((a, b) => a - b);
}

/** Where the critique repeats a whole paragraph, word for word and one after the other: place → index. */
function quotes(critique, paragraphs) {
  const out = new Map();
  let from = 0;
  paragraphs.slice(0, MOST_QUOTED).forEach((paragraph, index) => {
    const at = paragraph.length < SHORTEST_QUOTE ? -1 : critique.indexOf(paragraph, from);
    if (at < 0) return;
    out.set(at, index);
    from = at + paragraph.length;
  });
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
