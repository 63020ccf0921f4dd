import { Badge } from "./badge.jsx";
import { LongText } from "./long.jsx";
import { oneLine } from "./safe.js";

/** Who spoke when: the policy's turns and the environment's replies. */
export function Turns({ turns }) {
  return (
    <section aria-labelledby="turns-title">
      <h2 id="turns-title">Turns</h2>
      <ol class="turns">
        {turns.map((turn, i) => (
          <li key={i} class={turn.own ? "own" : "tool"}>
            <p>
              {turn.own ? "policy" : turn.tool ? `tool ${oneLine(turn.tool, 60)}` : "environment"}{" "}
              {turn.failed && (
                <Badge tone="bad" sign="✕">
                  failed
                </Badge>
              )}
            </p>
            <LongText text={turn.text || ""} />
          </li>
        ))}
      </ol>
    </section>
  );
}
