import { useState } from "preact/hooks";
import { forget, live, paths, post } from "../api.js";
import { useKeys } from "../keys.js";
import { Text } from "./text.jsx";
import { labelled, said } from "./words.js";

/** A person's word on the verdict: agree, disagree, another paragraph; what stands, and the way to take it back. A bundle has none. */
export function Label({ route, kind, rollout, again }) {
  const [state, setState] = useState({ busy: false, fault: "" });
  const judged = Number.isInteger(rollout.verdict?.step) ? rollout.verdict.step : rollout.verdict?.kind === "sound" ? -1 : null;
  const allowed = live && Boolean(rollout.verdict?.kind) && rollout.paragraphs?.length > 0;
  const write = async (label) => {
    if (!allowed || state.busy) return;
    setState({ busy: true, fault: "" });
    try {
      await post(paths.labels(route.key), { step: route.step, g: route.g, sample: route.sample, kind, label });
      forget(paths.rollout(route.key, route.step, kind, route.g, route.sample));
      await again();
      setState({ busy: false, fault: "" });
    } catch (error) {
      setState({ busy: false, fault: error.message });
    }
  };
  useKeys({
    y: ["agree with the judge", () => judged !== null && write(judged)],
    n: ["disagree: no paragraph is wrong", () => judged !== null && judged >= 0 && write(-1)],
    e: ["another paragraph", () => document.getElementById("label-other")?.focus()],
  });
  if (!live) return null;
  if (!allowed) return <p class="quiet">No verdict, and so none to label: only right answers are judged.</p>;
  const own = Number.isInteger(rollout.label) ? rollout.label : null;
  return (
    <section class="label" aria-labelledby="label-title">
      <h2 id="label-title">Is the judge right?</h2>
      <p role="status">
        The judge says {said(rollout.verdict)}. {own === null ? "You have said nothing yet." : `You say: ${labelled(own)}.`}
      </p>
      <div class="row-of-controls">
        {judged !== null && (
          <button type="button" aria-pressed={own === judged} onClick={() => write(judged)}>
            agree
          </button>
        )}
        {judged !== -1 && (
          <button type="button" aria-pressed={own === -1} onClick={() => write(-1)}>
            {judged === null ? "all sound" : "disagree: all sound"}
          </button>
        )}
        <Other rollout={rollout} judged={judged} own={own} onWrite={write} />
        {own !== null && (
          <button type="button" onClick={() => write(null)}>
            take it back
          </button>
        )}
      </div>
      {state.fault && (
        <p class="notice bad" role="alert">
          <Text>{state.fault}</Text>
        </p>
      )}
    </section>
  );
}

function Other({ rollout, judged, own, onWrite }) {
  const last = rollout.paragraphs.length - 1;
  const [value, setValue] = useState(own !== null && own >= 0 ? own : 0);
  const valid = Number.isInteger(value) && value >= 0 && value <= last;
  return (
    <form
      class="other"
      onSubmit={(event) => {
        event.preventDefault();
        if (valid) onWrite(value);
      }}
    >
      <label for="label-other">{judged === -1 ? "disagree: paragraph" : "another: paragraph"}</label>
      <input id="label-other" type="number" min="0" max={last} value={value} onInput={(event) => setValue(event.target.valueAsNumber)} />
      <button type="submit" disabled={!valid}>
        is the first wrong one
      </button>
    </form>
  );
}
