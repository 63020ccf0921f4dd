// Tables of the run page: before and after, time by phase, memory, settings.
import { Fold } from "../parts/fold.jsx";
import { Setting } from "../parts/settings.jsx";
import { count, duration, interval, mebibytes, NONE, number, share } from "../parts/numbers.js";
import { formatOf, isEnd } from "../measures.js";
import { Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";

const isNone = (value) => value === null || value === undefined;

function WithInterval({ value, low, high, show }) {
  if (isNone(value)) return NONE;
  const around = show === share ? interval(low, high) : `${show(low)}–${show(high)}`;
  return (
    <span class="figure">
      {show(value)}
      {!isNone(low) && !isNone(high) && <span class="quiet"> {around}</span>}
    </span>
  );
}

/** Two intervals that do not touch are said in words, so that nobody has to compare four numbers. */
function apart(before, after, name) {
  const ends = [before[`${name}_low`], before[`${name}_high`], after[`${name}_low`], after[`${name}_high`]];
  if (ends.some(isNone)) return "";
  if (ends[2] > ends[1]) return "higher, intervals apart";
  return ends[3] < ends[0] ? "lower, intervals apart" : "intervals overlap";
}

function SetBeforeAfter({ set, names, run }) {
  const { before, after } = run;
  const cell = (side) => (name) => (
    <WithInterval value={side[name]} low={side[`${name}_low`]} high={side[`${name}_high`]} show={formatOf(name)} />
  );
  const columns = [
    { name: "measure", title: "measure", head: true, show: (name) => <Text>{set ? name.slice(set.length + 1) : name}</Text> },
    { name: "before", title: "before", number: true, show: cell(before) },
    { name: "after", title: "after", number: true, show: cell(after) },
    { name: "apart", title: "difference", show: (name) => <span class="quiet nowrap">{apart(before, after, name)}</span> },
  ];
  return (
    <Table
      columns={columns}
      rows={names}
      id={(name) => name}
      caption={`${set || "Others"}: the first evaluation and the last, 95 % intervals`}
    />
  );
}

/** A table a set; measures are named "set/measure". */
export function BeforeAfter({ run }) {
  if (!run.before || !run.after) return <p class="quiet">Not two evaluations yet.</p>;
  const all = [...new Set([...Object.keys(run.before), ...Object.keys(run.after)])];
  const names = all.filter((name) => !isEnd(name, all));
  const sets = [...new Set(names.map((name) => name.split("/").slice(0, -1).join("/")))];
  return (
    <div class="columns">
      {sets.map((set) => (
        <SetBeforeAfter key={set} set={set} names={names.filter((name) => name.split("/").slice(0, -1).join("/") === set)} run={run} />
      ))}
    </div>
  );
}

export function Phases({ run }) {
  const { phases, hidden, path, steps } = run.time;
  const columns = [
    { name: "phase", title: "phase", head: true, show: ([name]) => <Text>{name}</Text> },
    { name: "seconds", title: "time", number: true, show: ([, seconds]) => duration(seconds) },
    {
      name: "share",
      title: "share",
      number: true,
      show: ([, , part]) => (
        <span class="with-bar">
          {share(part, 0)}
          <span class="bar" aria-hidden="true">
            <span style={{ width: `${100 * Math.min(1, part || 0)}%` }} />
          </span>
        </span>
      ),
    },
  ];
  return (
    <>
      <Table
        columns={columns}
        rows={phases}
        id={([name]) => name}
        caption={`By phase, mean of ${count(steps, "step")}`}
        empty="no phase has been recorded"
      />
      <p>
        Judging hidden behind other work: <b>{share(hidden)}</b>
      </p>
      <p>
        Critical path: {path.length ? path.map(([name, seconds], i) => `${i ? " → " : ""}${name} ${duration(seconds)}`).join("") : NONE}
      </p>
    </>
  );
}

/** Planned and measured, each in MiB where the name says so; plans of other shapes are shown as they are. */
export function Ledger({ run }) {
  const { planned, measured } = run.memory;
  const rows = [
    ...Object.entries(planned || {}).map(([name, value]) => ({ name, planned: value, measured: measured?.[name] })),
    ...Object.entries(measured || {})
      .filter(([name]) => !planned || !(name in planned))
      .map(([name, value]) => ({ name, planned: null, measured: value })),
  ];
  const words = { rss_mib: "RAM, peak of rank 0", gpu_mib: "GPU, peak of rank 0" };
  const show = (name, value) =>
    typeof value === "number" ? /mib$/.test(name) ? mebibytes(value) : number(value) : <Setting value={value} />;
  const columns = [
    { name: "name", title: "what", head: true, show: (row) => <Text>{words[row.name] || row.name}</Text> },
    { name: "planned", title: "planned", number: true, show: (row) => show(row.name, row.planned) },
    { name: "measured", title: "measured", number: true, show: (row) => show(row.name, row.measured) },
  ];
  return (
    <>
      <Table columns={columns} rows={rows} id={(row) => row.name} caption="Memory, planned and measured" hideCaption />
      {!planned && <p class="quiet">No plan stands in the run folder: make plan computes one.</p>}
    </>
  );
}

export function Settings({ run }) {
  const columns = [
    { name: "name", title: "setting", head: true, show: ([name]) => <Text class="mono">{name}</Text> },
    { name: "recipe", title: "recipe", show: ([, recipe]) => <Setting value={recipe} /> },
    { name: "run", title: "this run", show: ([, , own]) => <Setting value={own} /> },
  ];
  return (
    <>
      {run.differs ? (
        <Table
          columns={columns}
          rows={run.differs}
          id={([name]) => name}
          caption={`What differs from the recipe ${run.recipe ?? ""}`}
          empty="nothing"
        />
      ) : (
        <p class="quiet">The recipe is not known, so what differs from it is not either.</p>
      )}
      <Fold summary="The whole configuration">
        {() => (
          <Text block class="text config" tabIndex={0} role="region" aria-label="The whole configuration">
            {JSON.stringify(run.config, null, 1)}
          </Text>
        )}
      </Fold>
    </>
  );
}
