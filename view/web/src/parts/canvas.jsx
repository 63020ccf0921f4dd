import { useEffect, useRef, useState } from "preact/hooks";

const NAMES = ["ground", "ink", "line", "strong-line", "quiet", "link", ...[0, 1, 2, 3, 4, 5].map((i) => `series-${i}`)];

/** The theme's colours as a canvas takes them: a probe element resolves light-dark(). */
function coloursOf(element) {
  const out = {};
  for (const name of NAMES) {
    element.style.color = `var(--${name})`;
    out[name] = getComputedStyle(element).color;
  }
  element.style.color = "";
  return out;
}

/** A picture that is drawn anew for another size or theme; `draw(pen, colours)` works in CSS pixels. What it shows stands in `label` and in a
 * table beside it. */
export function Canvas({ width, height, label, draw }) {
  const ref = useRef(null);
  const [theme, setTheme] = useState(0);
  useEffect(() => {
    const changed = () => setTheme((old) => old + 1);
    const query = matchMedia("(prefers-color-scheme: dark)");
    const watch = new MutationObserver(changed);
    watch.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    query.addEventListener("change", changed);
    return () => {
      watch.disconnect();
      query.removeEventListener("change", changed);
    };
  }, []);
  useEffect(() => {
    const canvas = ref.current;
    const fine = devicePixelRatio || 1;
    canvas.width = Math.round(width * fine);
    canvas.height = Math.round(height * fine);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(fine, fine);
    draw(pen, coloursOf(canvas));
  }, [width, height, draw, theme]);
  return <canvas ref={ref} role="img" aria-label={label} />;
}
