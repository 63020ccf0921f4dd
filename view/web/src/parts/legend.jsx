// What stands under a curve: its lines with their values at a step, and all values as a table.
import { Fold } from "./fold.jsx";
import { withInterval } from "./numbers.js";
import { lastAt } from "./thin.js";

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2 1 2", "1 2"];
const ROWS = 200; // of the table

/** A line's looks, by its place: colour and dashes, so that colour is never needed to tell lines apart. */
export const look = (i) => ({ class: `series-${i % 6}`, "stroke-dasharray": DASHES[(i + Math.floor(i / 6)) % DASHES.length] });

/** What a line has at a step, with its interval; where it has nothing there, the last value before and its step. */
export function valueAt(line, step, show) {
  const at = lastAt(line.xs, line.ys, step);
  if (at < 0) return "—";
  return `${withInterval(line.ys[at], line.low?.[at], line.high?.[at], show)}${line.xs[at] === step ? "" : ` at ${line.xs[at]}`}`;
}

export function Legend({ lines, at, show, alarms }) {
  return (
    <ul class="legend">
      <li class="quiet">step {at}</li>
      {lines.map((line, i) => (
        <li key={line.label}>
          <svg width="22" height="8" aria-hidden="true">
            <line class={`line ${look(i).class}`} stroke-dasharray={look(i)["stroke-dasharray"]} x1="0" x2="22" y1="4" y2="4" />
          </svg>{" "}
          {line.label} <b>{valueAt(line, at, show)}</b>
        </li>
      ))}
      {alarms.map((text) => (
        <li key={text} class="alarm">
          ▲ {text}
        </li>
      ))}
    </ul>
  );
}

export function Behind({ title, lines, steps, show }) {
  const every = Math.ceil(steps.length / ROWS);
  // Of a long run some steps, but every evaluation.
  const evaluated = () => new Set(lines.filter((line) => line.dots).flatMap((line) => line.xs));
  const rows = (own = evaluated()) => steps.filter((step, i) => i % every === 0 || i === steps.length - 1 || own.has(step));
  return (
    <Fold summary={every > 1 ? `Values, one step in ${every}` : "Values"}>
      {() => (
        <div class="table-box tall" role="region" aria-label={`${title}, values`} tabIndex={0}>
          <table>
            <caption class="unseen">{title}, values by step</caption>
            <thead>
              <tr>
                <th scope="col">step</th>
                {lines.map((line) => (
                  <th key={line.label} scope="col" class="number">
                    {line.label}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows().map((step) => (
                <tr key={step}>
                  <th scope="row">{step}</th>
                  {lines.map((line) => (
                    <td key={line.label} class="number">
                      {line.xs[lastAt(line.xs, line.ys, step)] === step ? valueAt(line, step, show) : "—"}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </Fold>
  );
}
