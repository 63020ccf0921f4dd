import { useState } from "preact/hooks";
import { Text } from "./text.jsx";

export const PART = 20000; // characters

/** A button for what is not shown yet; nothing where all is. */
export function More({ shown, total, onMore }) {
  if (shown >= total) return null;
  const next = Math.min(PART, total - shown);
  return (
    <p class="more">
      <button type="button" onClick={onMore}>
        show the next {next.toLocaleString("en-US")} of {total.toLocaleString("en-US")} characters
      </button>
    </p>
  );
}

/** A text in parts of 20,000 characters; `left` is how many the server has kept back. */
export function LongText({ text, left = 0, ...rest }) {
  const [shown, setShown] = useState(PART);
  return (
    <>
      <Text block {...rest}>
        {text.slice(0, shown)}
      </Text>
      <More shown={Math.min(shown, text.length)} total={text.length} onMore={() => setShown(shown + PART)} />
      {left > 0 && <p class="quiet">{left.toLocaleString("en-US")} further characters stand in the run's files only.</p>}
    </>
  );
}
