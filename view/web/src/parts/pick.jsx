import { useState } from "preact/hooks";
import { visible } from "./safe.js";

const SHOWN = 60;

/** A searchable list of names with a box each: `chosen` in order, `onChange` gets the new list. */
export function Pick({ names, chosen, onChange, label }) {
  const [search, setSearch] = useState("");
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = names.filter((name) => words.every((word) => name.toLowerCase().includes(word)));
  const shown = [...chosen.filter((name) => !hits.includes(name)), ...hits.slice(0, SHOWN)];
  const toggle = (name) => onChange(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  return (
    <fieldset class="pick">
      <legend>{label}</legend>
      <div class="row-of-controls">
        <input
          type="search"
          data-find
          aria-label={`Search: ${label}`}
          placeholder="search"
          value={search}
          onInput={(event) => setSearch(event.target.value)}
        />
        <span class="quiet" role="status">
          {hits.length} of {names.length}
          {hits.length > SHOWN ? `, the first ${SHOWN} shown` : ""}
        </span>
        {chosen.length > 0 && (
          <button type="button" onClick={() => onChange([])}>
            None
          </button>
        )}
      </div>
      <ul>
        {shown.map((name) => (
          <li key={name}>
            <label>
              <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} /> {visible(name)}
            </label>
          </li>
        ))}
      </ul>
    </fieldset>
  );
}
