import { format } from "../route.js";

/** Links beside each other, the one of this page marked: `tabs` is [[title, route, isCurrent]…]. Names say what they choose between. */
export function Tabs({ tabs, label }) {
  return (
    <nav class="tabs" aria-label={label}>
      <ul>
        {tabs.map(([title, to, current]) => (
          <li key={title}>
            <a href={typeof to === "string" ? to : format(to)} aria-current={current ? "page" : undefined}>
              {title}
            </a>
          </li>
        ))}
      </ul>
    </nav>
  );
}

/** Buttons of which one is pressed: `choices` is [[value, title]…]. */
export function Choice({ choices, value, onChoose, label }) {
  return (
    <div class="choice" role="group" aria-label={label}>
      {choices.map(([each, title]) => (
        <button key={each} type="button" aria-pressed={each === value} onClick={() => onChoose(each)}>
          {title}
        </button>
      ))}
    </div>
  );
}
