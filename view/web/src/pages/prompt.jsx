import { useEffect, useState } from "preact/hooks";
import { get, live, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { Cells } from "../parts/cells.jsx";
import { Link } from "../parts/link.jsx";
import { Waiting } from "../parts/notice.jsx";
import { count } from "../parts/numbers.js";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";

const AGAIN = 1000; // ms

/** The same prompt at the run's steps: how its groups came out. */
export function PromptPage({ route, run }) {
  const id = route.query.id || "";
  const [left, setLeft] = useState(0); // steps that the server has not searched yet: it is asked again
  const asked = useJson(live && id ? paths.prompt(route.key, id) : null, left ? AGAIN : 0);
  useEffect(() => setLeft(asked.value?.left || 0), [asked.value]);
  const own = useBundled(route.key, run, live ? "" : id);
  const answer = live ? asked : own;
  useTitle("prompt", run?.name);
  if (!id) return <NoPrompt />;
  const rows = answer.value?.places || [];
  const columns = [
    { name: "step", title: "step", head: true, show: (row) => <GroupLink route={route} place={row} /> },
    { name: "kind", title: "kind", show: (row) => row[1] },
    { name: "cells", title: "rollouts", show: (row) => <Cells cells={row[3]} /> },
  ];
  return (
    <>
      <h1>
        One prompt{" "}
        <span class="quiet">
          <Text>{id}</Text>
        </span>
      </h1>
      <Waiting answer={answer} what="the steps" />
      {answer.value && (
        <>
          <Searched searched={answer.value.searched} found={rows.length} />
          {left > 0 && <p class="quiet">{count(left, "step")} to be searched yet …</p>}
          <Table
            caption="Where it was sampled"
            hideCaption
            columns={columns}
            rows={rows}
            id={(row) => row.slice(0, 3).join("/")}
            empty="at no step that was searched"
          />
        </>
      )}
    </>
  );
}

function NoPrompt() {
  return (
    <>
      <h1>One prompt</h1>
      <p>The address names no prompt; open one from a group's page.</p>
    </>
  );
}

function GroupLink({ route, place: [step, kind, g] }) {
  return (
    <Link row to={{ page: "group", key: route.key, step, g, query: { kind } }}>
      step {step}, group {g}
    </Link>
  );
}

export function Searched({ searched, found, noun = "group" }) {
  const [first, last] = searched || [];
  return (
    <p class="quiet" role="status">
      {count(found, noun)}
      {first === undefined || first === null ? "" : first === last ? `; searched step ${first}` : `; searched steps ${first} to ${last}`}
    </p>
  );
}

/** A bundle has no such question: its steps are read here, one after the other. */
function useBundled(key, run, id) {
  const [answer, setAnswer] = useState({ value: undefined, error: "", again: () => {} });
  useEffect(() => {
    if (!run || !id) return undefined;
    const control = new AbortController();
    searchBundle(key, run, id, control.signal).then(
      (value) => setAnswer({ value, error: "", again: () => {} }),
      (error) => !control.signal.aborted && setAnswer({ value: undefined, error: error.message, again: () => {} }),
    );
    return () => control.abort();
  }, [key, run, id]);
  return answer;
}

async function searchBundle(key, run, id, signal) {
  const places = [];
  const steps = [];
  for (const kind of ["train", "eval", "replaced"]) {
    for (const step of run.steps[kind] || []) {
      const found = await get(paths.step(key, step, kind), { signal });
      steps.push(step);
      for (const group of found.groups) if (group.prompt_id === id) places.push([step, kind, group.g, group.cells]);
    }
  }
  places.sort((a, b) => a[0] - b[0]);
  return { places, searched: steps.length ? [Math.min(...steps), Math.max(...steps)] : [] };
}
