import { useLayoutEffect, useState } from "preact/hooks";

/** Buttons that go to the page's own headings of the second level; addresses are taken, so these are no links. */
export function Jumps() {
  const [titles, setTitles] = useState([]);
  useLayoutEffect(() => {
    const found = [...document.querySelectorAll("main h2")].map((heading) => heading.textContent);
    setTitles((old) => (old.join() === found.join() ? old : found));
  });
  const jump = (at) => {
    const heading = document.querySelectorAll("main h2")[at];
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    heading.scrollIntoView({ block: "start" });
  };
  return (
    <nav class="jumps" aria-label="Parts of this page">
      {titles.map((title, at) => (
        <button key={title} type="button" onClick={() => jump(at)}>
          {title}
        </button>
      ))}
    </nav>
  );
}
