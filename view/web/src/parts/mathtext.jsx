import { useEffect, useMemo, useRef } from "preact/hooks";
import { LIMITS, pieces } from "../mathtext.js";
import { visible } from "./safe.js";
import { Text } from "./text.jsx";

const SLICE = 20; // ms of drawing between two breaths, so that keys are answered
const LONG = 40; // characters of a formula that may be wider than its column
const waiting = [];
let drawing = false;

async function drawAll() {
  if (drawing) return;
  drawing = true;
  const { draw } = await import("../math.js");
  while (waiting.length) {
    const end = performance.now() + SLICE;
    while (waiting.length && performance.now() < end) waiting.shift()(draw);
    await new Promise((go) => setTimeout(go, 0));
  }
  drawing = false;
}

/** Pieces of several texts of a page that share its allowance of formulas; `off`: all of it is text. */
export function useFormulas(texts, off) {
  return useMemo(() => {
    const left = { count: off ? 0 : LIMITS.formulas };
    return texts.map((text) => pieces(text, left));
  }, [off, texts.length, ...texts]);
}

/** Pieces as text and formulas; a formula that does not parse stays its source. */
export function Formulas({ pieces: list, block = false }) {
  const inner = list.map((piece, i) =>
    piece.math === undefined ? <Text key={i}>{piece.text}</Text> : <Formula key={`${i} ${piece.source}`} {...piece} />,
  );
  return block ? <div class="text">{inner}</div> : <span>{inner}</span>;
}

function Formula({ math, display, source }) {
  const ref = useRef(null);
  useEffect(() => {
    const element = ref.current;
    let gone = false;
    waiting.push((draw) => {
      if (gone) return;
      const fault = draw(element, math, display);
      if (!fault) {
        if (source.length > LONG && element.scrollWidth > element.clientWidth + 1) element.classList.add("wide");
        return;
      }
      element.classList.add("source");
      element.textContent = visible(source);
      element.title = visible(fault).slice(0, 200);
    });
    drawAll();
    return () => {
      gone = true;
    };
  }, [source]);
  return <span ref={ref} class={display ? "formula display" : "formula"} />;
}
