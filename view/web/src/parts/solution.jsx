import { useMemo, useRef, useState } from "preact/hooks";
import { byParagraph, sentences } from "../critique.js";
import { changed } from "../route.js";
import { Badge } from "./badge.jsx";
import { More, PART } from "./long.jsx";
import { Formulas, useFormulas } from "./mathtext.jsx";
import { count } from "./numbers.js";
import { pieces as safePieces } from "./safe.js";
import { Text } from "./text.jsx";

const MOST = 300; // paragraphs drawn at once

/** As much of the paragraphs as `room` characters hold, the last one cut: [text…]. */
export function within(paragraphs, room) {
  const out = [];
  for (const text of paragraphs) {
    if (room <= 0 || out.length >= MOST * Math.ceil(room / PART)) break;
    out.push(text.slice(0, room));
    room -= text.length;
  }
  return out;
}

/** Who says where the first wrong paragraph is: {index: [who…]}. */
function marks(rollout) {
  const out = {};
  const says = [
    ["the judge", rollout.verdict],
    ["the second opinion", rollout.second],
    ["the oracle", rollout.oracle],
  ];
  for (const [who, verdict] of says) if (verdict?.kind === "flawed" && Number.isInteger(verdict.step)) (out[verdict.step] ??= []).push(who);
  if (Number.isInteger(rollout.label) && rollout.label >= 0) (out[rollout.label] ??= []).push("your label");
  return out;
}

/** The solution in the paragraphs that the judge saw, beside what it wrote of them; below that the children. */
export function Solution({ route, rollout, source, children }) {
  const all = rollout.paragraphs?.length ? rollout.paragraphs : [rollout.text || ""];
  const [room, setRoom] = useState(PART);
  const [lit, setLit] = useState(null); // {paragraphs: [index…], sentences: [place…]}
  const list = useRef(null);
  const shown = useMemo(() => within(all, room), [all, room]);
  const total = useMemo(() => all.reduce((sum, text) => sum + text.length, 0), [all]);
  const critique = (rollout.critique || "").slice(0, PART);
  const said = useMemo(() => sentences(critique, all), [critique, all]);
  const naming = useMemo(() => byParagraph(said, all.length), [said, all]);
  const drawn = useFormulas(
    useMemo(() => [...shown, ...said.map((sentence) => sentence.text)], [shown, said]),
    source,
  );
  const wrong = rollout.verdict?.kind === "flawed" && Number.isInteger(rollout.verdict.step) ? rollout.verdict.step : null;
  const hidden = useMemo(() => safePieces(rollout.text || "").filter((piece) => piece.hidden).length, [rollout]);
  const who = useMemo(() => marks(rollout), [rollout]);
  const find = (kind, at) => list.current.querySelector(`[data-${kind}="${at}"]`);
  const toParagraph = (at, sentence) => {
    setLit({ paragraphs: said[sentence].paragraphs, sentences: [sentence] });
    find("paragraph", at)?.scrollIntoView({ block: "nearest" });
    find("paragraph", at)?.focus({ preventScroll: true });
  };
  const toSentence = (at) => {
    setLit({ paragraphs: [at], sentences: naming[at] });
    find("sentence", naming[at][0])?.scrollIntoView({ block: "nearest" });
    find("sentence", naming[at][0])?.focus({ preventScroll: true });
  };
  return (
    <div class="reading" ref={list}>
      <section aria-labelledby="solution-title">
        <div class="title-row">
          <h2 id="solution-title">Solution</h2>
          <a href={changed(route, { source: source ? "" : 1 })}>{source ? "draw formulas" : "source of formulas"}</a>
        </div>
        {hidden > 0 && (
          <p class="notice warn">
            {count(hidden, "place")} with hidden characters, which the judge is not shown; they stand visible in the whole response below.
          </p>
        )}
        <ol class="paragraphs">
          {shown.map((_, i) => (
            <Paragraph
              key={i}
              at={i}
              pieces={drawn[i]}
              who={who[i]}
              after={wrong !== null && i > wrong}
              lit={lit?.paragraphs.includes(i)}
              naming={naming[i]?.length || 0}
              onNaming={() => toSentence(i)}
            />
          ))}
        </ol>
        <More shown={shown.reduce((sum, text) => sum + text.length, 0)} total={total} onMore={() => setRoom(room + PART)} />
        {rollout.left > 0 && <p class="quiet">{rollout.left.toLocaleString("en-US")} further characters stand in the run's files only.</p>}
      </section>
      <section aria-labelledby="critique-title">
        <h2 id="critique-title">Critique</h2>
        {!critique && <p class="quiet">{rollout.verdict ? "What the judge wrote was not recorded." : "No judge was asked."}</p>}
        <div class="critique text">
          {said.map((sentence, at) => (
            <Sentence
              key={at}
              at={at}
              sentence={sentence}
              pieces={drawn[shown.length + at]}
              lit={lit?.sentences.includes(at)}
              onParagraph={(i) => toParagraph(i, at)}
            />
          ))}
        </div>
        {(rollout.critique || "").length > PART && (
          <p class="quiet">its first 20,000 characters; all of it is below, as the judge's reply</p>
        )}
        {children}
      </section>
    </div>
  );
}

function Paragraph({ at, pieces, who, after, lit, naming, onNaming }) {
  return (
    <li class={`paragraph${who ? " wrong" : ""}${after ? " after" : ""}${lit ? " lit" : ""}`} data-paragraph={at} tabIndex={-1}>
      <span class="paragraph-number">{at}</span>
      {who && (
        <p class="paragraph-head">
          <Badge tone="bad" sign="▲">
            first wrong one: {who.join(", ")}
          </Badge>
        </p>
      )}
      {after && <span class="unseen">after the first wrong one</span>}
      <Formulas pieces={pieces} block />
      {naming > 0 && (
        <button type="button" class="plain" onClick={onNaming} aria-label={`where the critique speaks of paragraph ${at}`}>
          critique{naming > 1 ? ` ×${naming}` : ""} →
        </button>
      )}
    </li>
  );
}

function Sentence({ at, sentence, pieces, lit, onParagraph }) {
  return (
    <span class={`sentence${lit ? " lit" : ""}`} data-sentence={at} tabIndex={-1}>
      {sentence.paragraphs.length > 0 && (
        <span class="pointers">
          {sentence.paragraphs.map((i) => (
            <button key={i} type="button" class="pointer" onClick={() => onParagraph(i)} aria-label={`to paragraph ${i}`}>
              {i}
            </button>
          ))}
        </span>
      )}
      {pieces ? <Formulas pieces={pieces} /> : <Text>{sentence.text}</Text>}
    </span>
  );
}
