// A bundle's find: texts of its steps, searched in the page, with the same answer as the server's.

const MOST = 200;
const AROUND = 80; // characters each side

/** {hits, searched, more} of a text without regard to case; `texts(step)` gives [[g, sample, text]…] of a step. */
export async function hitsIn(q, steps, texts) {
  const hits = [];
  const wanted = q.toLowerCase();
  for (const step of steps) {
    for (const [g, sample, text] of await texts(step)) {
      const at = text.toLowerCase().indexOf(wanted);
      if (at < 0) continue;
      if (hits.length === MOST) return { hits, searched: [steps[0], step], more: true };
      const end = at + q.length;
      const before = text.slice(Math.max(0, at - AROUND), at);
      hits.push({ step, g, sample, where: "text", before, hit: text.slice(at, end), after: text.slice(end, end + AROUND) });
    }
  }
  return { hits, searched: steps.length ? [steps[0], steps.at(-1)] : [], more: false };
}
