import { useEffect, useMemo, useState } from "preact/hooks";
import { ApiError, get, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { allNames, formatOf, oneLine } from "../measures.js";
import { Curve } from "../parts/curve.jsx";
import { Waiting } from "../parts/notice.jsx";
import { oneLine as inOneLine } from "../parts/safe.js";
import { Pick } from "../parts/pick.jsx";
import { differing, Setting } from "../parts/settings.jsx";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { changed, go } from "../route.js";
import { useSeries } from "../series.js";
import { figureColumns, nameColumn } from "./run_columns.jsx";

const FIRST = ["reward/correct", "fapo/flawed_ratio", "fapo/flawed_corrected", "loss/entropy", "mismatch/gate", "time/step"];

/** run.json of several runs by key; a run that cannot be read is named in `errors`. */
function useRuns(keys) {
  const [state, setState] = useState({ runs: {}, errors: [] });
  const names = keys.join(",");
  useEffect(() => {
    const control = new AbortController();
    const runs = {};
    const errors = [];
    async function ask(key) {
      try {
        runs[key] = await get(paths.run(key), { signal: control.signal });
      } catch (error) {
        if (control.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        errors.push(error.message);
      }
    }
    const all = names.split(",").filter(Boolean);
    Promise.all(all.map(ask)).then(() => control.signal.aborted || setState({ runs, errors }));
    return () => control.abort();
  }, [names]);
  return state;
}

function Differences({ keys, runs, label }) {
  const known = keys.filter((key) => runs[key]);
  const rows = differing(known.map((key) => runs[key].config)).map(([name, values]) => ({ name, values }));
  const columns = [
    { name: "name", title: "setting", head: true, show: (row) => <Text class="mono">{row.name}</Text> },
    ...known.map((key, i) => ({ name: key, title: label(key), show: (row) => <Setting value={row.values[i]} /> })),
  ];
  const title = "Settings that differ between the runs";
  return <Table columns={columns} rows={rows} id={(row) => row.name} caption={title} hideCaption empty="none: all are the same" />;
}

function Overlay({ name, keys, data, label }) {
  const labels = keys.map(label).join("\n");
  const lines = useMemo(
    () => keys.map((key) => data[key] && oneLine(name, data[key], label(key))).filter(Boolean),
    [name, keys, data, labels],
  );
  const without = keys.filter((key) => data[key] && !oneLine(name, data[key])).map(label);
  return (
    <div>
      {lines.length > 0 && <Curve title={name} lines={lines} show={formatOf(name)} />}
      {lines.length === 0 && <h3>{name}</h3>}
      {without.length > 0 && <p class="quiet">Not recorded by {without.join(", ")}.</p>}
    </div>
  );
}

/** Labels of runs: their names, with the key behind where two have the same. */
function labelsOf(keys, runs) {
  const names = keys.map((key) => inOneLine(runs[key]?.name || key, 40));
  return Object.fromEntries(
    keys.map((key, i) => [key, names.indexOf(names[i]) === names.lastIndexOf(names[i]) ? names[i] : `${names[i]} (${key})`]),
  );
}

export function ComparePage({ route }) {
  const keys = useMemo(() => [...new Set((route.query.runs || "").split(",").filter(Boolean))], [route.query.runs]);
  const list = useJson(paths.runs(), 2000);
  const { runs, errors } = useRuns(keys);
  const { data, error } = useSeries(keys, 5000);
  const labels = labelsOf(keys, runs);
  const label = (key) => labels[key];
  useTitle("Compare", keys.map(label).join(", "));
  const known = useMemo(() => [...new Set(Object.values(data).flatMap(allNames))].sort(), [data]);
  const asked = route.query.names;
  const names = asked === undefined ? FIRST.filter((name) => known.includes(name)) : asked.split(",").filter(Boolean);
  const chooseNames = (next) => go(changed(route, { names: next.length ? next.join(",") : "," }), true);
  const chooseRuns = (next) => go(changed(route, { runs: next.join(",") }), true);
  const all = list.value ? list.value.runs : [];
  const columns = [nameColumn(), ...figureColumns()];
  return (
    <>
      <h1>Compare</h1>
      {[...errors, error].filter(Boolean).map((line) => (
        <p key={line} class="notice bad" role="alert">
          <Text>{line}</Text>
        </p>
      ))}
      <Waiting answer={list} what="the runs" />
      {keys.length < 2 && <p class="notice">Two runs or more are compared: choose them below.</p>}
      <Table
        columns={columns}
        rows={keys.map((key) => all.find((run) => run.key === key)).filter(Boolean)}
        id={(run) => run.key}
        caption="The chosen runs, last step or evaluation"
        cards
        empty="no run is chosen"
      />
      <details open={keys.length < 2}>
        <summary>Choose runs</summary>
        <Pick label="Runs to compare" names={all.map((run) => run.key)} chosen={keys} onChange={chooseRuns} />
      </details>
      <h2>Curves</h2>
      <details>
        <summary>Choose of {known.length} series</summary>
        <Pick label="Series to draw" names={known} chosen={names} onChange={chooseNames} />
      </details>
      <div class="curves">
        {names.map((name) => (
          <Overlay key={name} name={name} keys={keys} data={data} label={label} />
        ))}
      </div>
      <h2>Settings that differ</h2>
      <Differences keys={keys} runs={runs} label={label} />
    </>
  );
}
