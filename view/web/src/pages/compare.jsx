import { useEffect, useMemo, useState } from "preact/hooks";
import { get, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { allNames, formatOf, oneLine } from "../measures.js";
import { Curve } from "../parts/curve.jsx";
import { Link } from "../parts/link.jsx";
import { Waiting } from "../parts/notice.jsx";
import { oneLine as inOneLine } from "../parts/safe.js";
import { Pick } from "../parts/pick.jsx";
import { differing, Setting } from "../parts/settings.jsx";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { changed, go } from "../route.js";
import { useSeries } from "../series.js";

const FIRST = ["reward/correct", "fapo/flawed_ratio", "fapo/flawed_corrected", "loss/entropy", "mismatch/gate", "time/step"];

/** run.json of several runs by key; a run that cannot be read is named in `errors`. */
function useRuns(keys) {
  const [state, setState] = useState({ runs: {}, errors: [] });
  const names = keys.join(",");
  useEffect(() => {
    const control = new AbortController();
    const runs = {};
    const errors = [];
    const ask = (key) =>
      get(paths.run(key), { signal: control.signal }).then(
        (run) => (runs[key] = run),
        (error) => errors.push(error.message),
      );
    Promise.all(names.split(",").filter(Boolean).map(ask)).then(() => !control.signal.aborted && setState({ runs, errors }));
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
  return (
    <Table
      columns={columns}
      rows={rows}
      id={(row) => row.name}
      caption="Settings that differ between the runs"
      hideCaption
      empty="none: all settings are the same"
    />
  );
}

function Overlay({ name, keys, data, label }) {
  const lines = useMemo(() => keys.map((key) => data[key] && oneLine(name, data[key], label(key))).filter(Boolean), [name, keys, data]);
  return lines.length ? (
    <Curve title={name} lines={lines} show={formatOf(name)} />
  ) : (
    <p class="quiet">No chosen run has recorded {name}.</p>
  );
}

export function ComparePage({ route }) {
  const keys = useMemo(() => (route.query.runs || "").split(",").filter(Boolean), [route.query.runs]);
  const list = useJson(paths.runs(), 0);
  const { runs, errors } = useRuns(keys);
  const { data, error } = useSeries(keys, 5000);
  useTitle("Compare", keys.map((key) => runs[key]?.name || key).join(", "));
  const known = useMemo(() => [...new Set(Object.values(data).flatMap(allNames))].sort(), [data]);
  const names =
    route.query.names === undefined ? FIRST.filter((name) => known.includes(name)) : route.query.names.split(",").filter(Boolean);
  const label = (key) => inOneLine(runs[key]?.name || key, 40);
  const choose = (next) => go(changed(route, { names: next.length ? next.join(",") : "," }), true);
  const others = (list.value?.runs || []).map((run) => run.key);
  return (
    <>
      <h1>Compare</h1>
      {[...errors, error].filter(Boolean).map((line) => (
        <p key={line} class="notice bad" role="alert">
          <Text>{line}</Text>
        </p>
      ))}
      <Waiting answer={list} what="the runs" />
      <p>
        {keys.map((key, i) => (
          <span key={key}>
            {i > 0 && ", "}
            <Link to={{ page: "run", key }} row>
              {label(key)}
            </Link>
          </span>
        ))}
      </p>
      {keys.length < 2 && <p class="notice">Two runs or more are compared: choose some below.</p>}
      <details>
        <summary>Other runs</summary>
        <Pick
          label="Runs to compare"
          names={others}
          chosen={keys}
          onChange={(next) => go(changed(route, { runs: next.join(",") }), true)}
        />
      </details>
      <h2>Curves</h2>
      <details>
        <summary>Which series</summary>
        <Pick label="Series to draw" names={known} chosen={names} onChange={choose} />
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
