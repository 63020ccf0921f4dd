import { useEffect, useState } from "preact/hooks";
import { get, live, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { Link } from "../parts/link.jsx";
import { Waiting } from "../parts/notice.jsx";
import { oneLine } from "../parts/safe.js";
import { go } from "../route.js";
import { hitsIn } from "../search.js";
import { Searched } from "./prompt.jsx";

const WHERE = { text: "response", critique: "critique", prompt: "problem" };

/** A find over texts, critiques and problems; question, kind and steps stand in the address. */
export function FindPage({ route, run }) {
  const { q = "", kind = "train", steps = "" } = route.query;
  const asked = useJson(live && q ? paths.find(route.key, q, kind, steps) : null);
  const own = useBundled(route.key, run, live ? "" : q);
  const answer = live ? asked : own;
  useTitle(q ? `find ${oneLine(q, 30)}` : "find", run?.name);
  return (
    <>
      <h1>Find</h1>
      <Question key={`${q}/${kind}/${steps}`} route={route} values={{ q, kind, steps }} />
      {q && <Waiting answer={answer} what="the texts" />}
      {q && answer.value && <Hits route={route} kind={live ? kind : "train"} found={answer.value} />}
    </>
  );
}

function Question({ route, values }) {
  const ask = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const kind = form.get("kind");
    go({ ...route, query: { q: form.get("q"), kind: kind === "train" ? "" : kind, steps: form.get("steps") } });
  };
  return (
    <form class="row-of-controls" role="search" onSubmit={ask}>
      <label>
        text <input name="q" type="search" defaultValue={values.q} data-find="" autoComplete="off" spellcheck={false} />
      </label>
      {live && (
        <label>
          in{" "}
          <select name="kind" defaultValue={values.kind}>
            <option value="train">training</option>
            <option value="eval">evaluations</option>
            <option value="replaced">replaced groups</option>
          </select>
        </label>
      )}
      {live && (
        <label>
          steps <input name="steps" defaultValue={values.steps} placeholder="all, or 1-12" size="10" autoComplete="off" />
        </label>
      )}
      <button type="submit">find</button>
    </form>
  );
}

function Hits({ route, kind, found }) {
  return (
    <>
      <Searched searched={found.searched} found={found.hits.length} noun="hit" />
      {found.more && <More route={route} searched={found.searched} />}
      <ol class="found">
        {found.hits.map((hit, i) => (
          <li key={i}>
            <Link row to={{ page: "rollout", key: route.key, step: hit.step, g: hit.g, sample: hit.sample ?? 0, query: { kind } }}>
              step {hit.step}, group {hit.g}, rollout {hit.sample ?? 0}
            </Link>{" "}
            <span class="quiet">{WHERE[hit.where] || hit.where}</span>
            <p class="mono">
              {oneLine(hit.before, 120)} <mark>{oneLine(hit.hit, 200)}</mark> {oneLine(hit.after, 120)}
            </p>
          </li>
        ))}
      </ol>
    </>
  );
}

/** The way to what stands behind the last step that was searched. */
function More({ route, searched }) {
  const last = searched.at(-1);
  if (!live || last === undefined) return <p>There are more; look for longer words.</p>;
  const to = { ...route, query: { ...route.query, steps: `${last + 1}-` } };
  return (
    <p>
      There may be more: <Link to={to}>from step {last + 1} on</Link>
    </p>
  );
}

/** A bundle's own find: the texts of its steps are read, and searched here. */
function useBundled(key, run, q) {
  const [answer, setAnswer] = useState({ value: undefined, error: "", again: () => {} });
  useEffect(() => {
    if (!run || !q) return undefined;
    const control = new AbortController();
    const steps = run.steps.train || [];
    hitsIn(q, steps, (step) => get(paths.texts(key, step), { signal: control.signal })).then(
      (value) => setAnswer({ value, error: "", again: () => {} }),
      (error) => !control.signal.aborted && setAnswer({ value: undefined, error: error.message, again: () => {} }),
    );
    return () => control.abort();
  }, [key, run, q]);
  return answer;
}
