// A rollout's standing as one letter of the contract, each with a shape, a colour and a word.

export const CELLS = {
  s: ["●", "sound"],
  f: ["▲", "flawed"],
  w: ["✕", "wrong"],
  u: ["?", "unknown"],
  n: ["○", "no answer"],
  r: ["◆", "right, not judged"],
};

export function cellWord(kind) {
  return CELLS[kind] ? CELLS[kind][1] : `standing ${kind}`;
}

/** "5 sound, 2 flawed, 1 wrong", in the order of the key. */
export function cellSummary(cells) {
  const counts = {};
  for (const kind of cells) counts[kind] = (counts[kind] || 0) + 1;
  return Object.keys(CELLS)
    .filter((kind) => counts[kind])
    .map((kind) => `${counts[kind]} ${cellWord(kind)}`)
    .join(", ");
}

/** One glyph; `word` writes what it means beside it, else screen readers alone hear it. */
export function Cell({ kind, word = false }) {
  const glyph = CELLS[kind] ? CELLS[kind][0] : "·";
  return word ? (
    <span class="cell-word">
      <span class={`cell cell-${kind}`} aria-hidden="true">
        {glyph}
      </span>{" "}
      {cellWord(kind)}
    </span>
  ) : (
    <span class={`cell cell-${kind}`} role="img" aria-label={cellWord(kind)} title={cellWord(kind)}>
      {glyph}
    </span>
  );
}

/** A group's glyphs in a row, one name for all of them: `<Cells cells="ssfw" />`. */
export function Cells({ cells, label = "" }) {
  return (
    <span class="cells" role="img" aria-label={`${label ? `${label}: ` : ""}${cellSummary(cells) || "nothing"}`}>
      {[...cells].map((kind, i) => (
        <span key={i} class={`cell cell-${kind}`} aria-hidden="true">
          {CELLS[kind] ? CELLS[kind][0] : "·"}
        </span>
      ))}
    </span>
  );
}

/** What the glyphs mean, once a page. */
export function CellKey() {
  return (
    <ul class="cell-key" aria-label="What the glyphs mean">
      {Object.keys(CELLS).map((kind) => (
        <li key={kind}>
          <Cell kind={kind} word />
        </li>
      ))}
    </ul>
  );
}
