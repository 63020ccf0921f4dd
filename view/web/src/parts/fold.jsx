import { useState } from "preact/hooks";

/** What is only made when it is opened: `children` is a function. */
export function Fold({ summary, children }) {
  const [open, setOpen] = useState(false);
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{summary}</summary>
      {open && children()}
    </details>
  );
}
