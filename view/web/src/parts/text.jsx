import { pieces } from "./safe.js";

/** Foreign text: as text, with hidden characters made visible. `block` keeps its lines and wraps them. */
export function Text({ children, block = false, ...rest }) {
  // Several children are one text: `<Text>in {root}</Text>`.
  const shown = pieces(
    [children]
      .flat()
      .filter((part) => part !== null && part !== undefined && part !== false)
      .join(""),
  );
  const inner = shown.map((piece) => (piece.hidden ? <span class="hidden-character">{piece.text}</span> : piece.text));
  return block ? (
    <div class="text" {...rest}>
      {inner}
    </div>
  ) : (
    <span {...rest}>{inner}</span>
  );
}
