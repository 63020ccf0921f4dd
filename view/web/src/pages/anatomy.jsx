import { useMemo, useState } from "preact/hooks";
import { paths } from "../api.js";
import { useJson, useTitle, useWidth } from "../hooks.js";
import { useKeys } from "../keys.js";
import { Canvas } from "../parts/canvas.jsx";
import { Faults } from "../parts/faults.jsx";
import { Link } from "../parts/link.jsx";
import { Waiting } from "../parts/notice.jsx";
import { count, duration, moment, NONE } from "../parts/numbers.js";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { around } from "../filters.js";
import { drawLanes, drawRollouts, end, phaseColour, span, TIMES, updates, windowName } from "../wallclock.js";
import { changed, go } from "../route.js";

const ROWS = 200;
const ORDERS = { order: "as sampled", span: "longest span", end: "ended last" };

/** A step on the wall clock: what each rank did, and a line a rollout from sampling to verdict. */
export function AnatomyPage({ route, run }) {
  const answer = useJson(paths.anatomy(route.key, route.step));
  const [before, after] = around(run, route.step, "train");
  const toStep = (step) => step !== null && go({ ...route, step });
  useTitle("wall clock", `step ${route.step}`, run?.name);
  useKeys({ K: ["the step before", () => toStep(before)], J: ["the step after", () => toStep(after)] });
  const clock = answer.value;
  return (
    <>
      <div class="title-row">
        <h1>
          Wall clock <span class="quiet">of step {route.step}</span>
        </h1>
        <nav class="neighbours" aria-label="Steps beside this one">
          {before !== null && <Link to={{ ...route, step: before }}>← step {before}</Link>}
          {after !== null && <Link to={{ ...route, step: after }}>step {after} →</Link>}
        </nav>
      </div>
      <Waiting answer={answer} what="the wall clock" />
      <Faults faults={answer.value?.faults} />
      {clock && <Clock route={route} clock={clock} />}
    </>
  );
}

/** Rows [g, sample, rank, sampled, verified, asked, first token, answered, window] in the order of the address. */
function arranged(rollouts, order) {
  const measure = order === "span" ? span : order === "end" ? end : null;
  return measure ? [...rollouts].sort((a, b) => (measure(b) ?? -1) - (measure(a) ?? -1)) : rollouts;
}

function Clock({ route, clock }) {
  const order = route.query.sort || "order";
  const rows = useMemo(() => arranged(clock.rollouts, order), [clock, order]);
  const missing = TIMES.filter(([at]) => !clock.rollouts.some((row) => row[at] !== null)).map(([, name]) => name);
  const last = useMemo(() => lastMoment(clock), [clock]);
  if (last === 0) return <p>Nothing of this step's times was recorded: the run has no trace.json, or began before this step.</p>;
  return (
    <>
      <p class="quiet">
        {moment(clock.begin)} · seconds after the step began · {duration(last)} in all
      </p>
      <Lanes clock={clock} last={last} />
      <section aria-labelledby="rows-title">
        <h2 id="rows-title">{count(clock.rollouts.length, "rollout")} of which something was recorded</h2>
        <nav aria-label="Order of the rollouts">
          <ul class="chips">
            {Object.entries(ORDERS).map(([name, says]) => (
              <li key={name}>
                <a href={changed(route, { sort: name === "order" ? "" : name })} aria-current={name === order ? "true" : undefined}>
                  {says}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        {missing.length > 0 && <p class="notice calm">Not recorded for any rollout of this step: {missing.join(", ")}.</p>}
        {missing.length < TIMES.length && <Rollouts route={route} clock={clock} rows={rows} last={last} missing={missing} />}
      </section>
    </>
  );
}

function lastMoment(clock) {
  let last = 0;
  for (const rank of clock.ranks) for (const [, , to] of rank.phases) last = Math.max(last, to ?? 0);
  for (const row of clock.rollouts) last = Math.max(last, end(row) ?? 0);
  return last;
}

function Lanes({ clock, last }) {
  const [ref, width] = useWidth();
  const phases = clock.ranks.flatMap(({ rank, phases }) => phases.map(([name, from, to]) => ({ rank, name, from, to })));
  const columns = [
    { name: "rank", title: "rank", head: true },
    { name: "name", title: "phase", show: (row) => <Text>{row.name}</Text> },
    { name: "from", title: "from", number: true, show: (row) => duration(row.from) },
    { name: "to", title: "to", number: true, show: (row) => (row.to === null ? "still open" : duration(row.to)) },
    { name: "long", title: "took", number: true, show: (row) => (row.to === null ? NONE : duration(row.to - row.from)) },
  ];
  return (
    <section aria-labelledby="lanes-title">
      <h2 id="lanes-title">Ranks</h2>
      <div ref={ref}>
        <Canvas
          width={width}
          height={clock.ranks.length * 44 + 24}
          label={`Phases of ${clock.ranks.length} ranks over ${duration(last)}; the table below has the same`}
          draw={(pen, colours) => drawLanes(pen, colours, { clock, last, width })}
        />
      </div>
      <ul class="clock-key" aria-label="Colours of the phases">
        {[...new Set(phases.map((phase) => phase.name))].map((name) => (
          <li key={name} class={`phase-${phaseColour(name)}`}>
            <Text>{name}</Text>
          </li>
        ))}
      </ul>
      <details>
        <summary>the same as a table</summary>
        <Table caption="Phases of the ranks, seconds after the step began" columns={columns} rows={phases} />
      </details>
    </section>
  );
}

function Rollouts({ route, clock, rows, last, missing }) {
  const [ref, width] = useWidth();
  const [shown, setShown] = useState(ROWS);
  const tall = Math.max(2, Math.min(10, Math.floor(1200 / rows.length)));
  const open = (event) => {
    const row = rows[Math.floor(event.offsetY / tall)];
    if (row) go({ page: "rollout", key: route.key, step: route.step, g: row[0], sample: row[1], query: { kind: "train" } });
  };
  const columns = [
    { name: "id", title: "rollout", head: true, show: (row) => <RolloutLink route={route} row={row} /> },
    { name: "rank", title: "rank", number: true, show: (row) => row[2] },
    ...TIMES.map(([at, name]) => ({ name, title: name, number: true, show: (row) => duration(row[at]) })),
    { name: "window", title: "trained in", show: (row) => windowName(row[8]) },
  ];
  return (
    <>
      <Key missing={missing} windows={rows.some((row) => row[8] !== null)} />
      <div ref={ref} onClick={open} class="clickable">
        <Canvas
          width={width}
          height={rows.length * tall + 20}
          label={`A line a rollout over ${duration(last)}; the table below has the same`}
          draw={(pen, colours) => drawRollouts(pen, colours, { rows, last, width, tall, ends: updates(clock) })}
        />
      </div>
      <details>
        <summary>the same as a table</summary>
        <Table
          caption="Rollouts, seconds after the step began"
          columns={columns}
          rows={rows.slice(0, shown)}
          id={(row) => `${row[0]}/${row[1]}`}
        />
        {shown < rows.length && (
          <button type="button" onClick={() => setShown(shown + ROWS)}>
            {Math.min(ROWS, rows.length - shown)} more of {rows.length}
          </button>
        )}
      </details>
    </>
  );
}

/** What the lines mean, of what was recorded. */
function Key({ missing, windows }) {
  const first = !missing.includes("first token");
  const says = [
    ["sampled", "sampling"],
    ["verified", "verifying"],
    ["asked", first ? "the judge: asked, no token yet" : "the judge: asked to answered"],
    ...(first ? [["answered", "the judge: writing"]] : []),
  ];
  return (
    <ul class="clock-key" aria-label="What the lines mean">
      {says
        .filter(([name]) => !missing.includes(name))
        .map(([name, text]) => (
          <li key={name} class={`key-${name}`}>
            {text}
          </li>
        ))}
      {windows && <li class="key-window">the update that it trained in</li>}
    </ul>
  );
}

function RolloutLink({ route, row }) {
  const to = { page: "rollout", key: route.key, step: route.step, g: row[0], sample: row[1], query: { kind: "train" } };
  return <Link to={to}>{`${row[0]}/${row[1]}`}</Link>;
}
