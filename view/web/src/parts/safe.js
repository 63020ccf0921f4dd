// Text of models, files and verifiers is only ever text. Characters that would hide or turn what stands there are made visible.

// C0 but tab and line feed, DEL, C1, soft hyphen, Arabic letter mark, zero-width and bidi marks, separators, invisible operators, BOM,
// interlinear and tag characters, lone surrogates.
const HIDDEN = new RegExp(
  [
    "[\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b-\\u200f]",
    "[\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb]",
    "[\\u{e0000}-\\u{e0fff}]",
    "\\p{Surrogate}",
  ].join("|"),
  "gu",
);

/** How one hidden character is shown: "⟨U+202E⟩", escape as "⟨ESC⟩", carriage return as "⟨CR⟩". */
export function spell(character) {
  if (character === "\u001b") return "⟨ESC⟩";
  if (character === "\r") return "⟨CR⟩";
  return `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/**
 * Pieces of a text, hidden characters apart.
 *
 * @param {string} text
 * @returns {{text: string, hidden: boolean}[]} in order; joined they show all of it
 */
export function pieces(text) {
  const found = [];
  let from = 0;
  for (const hit of text.matchAll(HIDDEN)) {
    if (hit.index > from) found.push({ text: text.slice(from, hit.index), hidden: false });
    const last = found.at(-1);
    // A carriage return before a line feed is how some files end lines: no need to show it.
    if (!(hit[0] === "\r" && text[hit.index + 1] === "\n")) {
      if (last && last.hidden) last.text += spell(hit[0]);
      else found.push({ text: spell(hit[0]), hidden: true });
    }
    from = hit.index + hit[0].length;
  }
  if (from < text.length) found.push({ text: text.slice(from), hidden: false });
  return found;
}

/** The same as one string, for titles and labels. */
export function visible(text) {
  return String(text).replace(HIDDEN, spell);
}

/** At most `limit` characters of a text in one line, for lists. */
export function oneLine(text, limit = 160) {
  const line = visible(
    String(text)
      .slice(0, 4 * limit)
      .replace(/\s+/g, " ")
      .trim(),
  );
  return line.length > limit ? `${line.slice(0, limit - 1)}…` : line;
}
