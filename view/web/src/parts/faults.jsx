import { count } from "./numbers.js";
import { Text } from "./text.jsx";

/** What could not be read of the run's files: said, and never hidden. */
export function Faults({ faults }) {
  if (!faults?.length) return null;
  return (
    <details class="notice bad" open={faults.length < 4}>
      <summary>{count(faults.length, "part")} could not be read</summary>
      <ul>
        {faults.map((line, i) => (
          <li key={i}>
            <Text>{line}</Text>
          </li>
        ))}
      </ul>
    </details>
  );
}
