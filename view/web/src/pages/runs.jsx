import { live, paths } from "../api.js";
import { useJson, useTitle } from "../hooks.js";
import { useKeys } from "../keys.js";
import { Badge } from "../parts/badge.jsx";
import { Waiting } from "../parts/notice.jsx";
import { count } from "../parts/numbers.js";
import { visible } from "../parts/safe.js";
import { sorted, Table } from "../parts/table.jsx";
import { Text } from "../parts/text.jsx";
import { changed, format, go } from "../route.js";
import { figureColumns, nameColumn } from "./run_columns.jsx";

function Alarms({ run }) {
  if (run.state === "broken") return <Text class="fault">{run.fault}</Text>;
  if (!run.alarms.length) return <span class="quiet">none</span>;
  return (
    <span class="alarms" title={visible(run.alarms.join("\n"))}>
      <Badge tone="bad" sign="▲">
        {run.alarms.length}
      </Badge>{" "}
      <Text>{run.alarms.at(-1)}</Text>
    </span>
  );
}

export function RunsPage({ route }) {
  useTitle("Runs");
  const answer = useJson(paths.runs(), 2000);
  const { sort = "-updated", q = "" } = route.query;
  const chosen = (route.query.chosen || "").split(",").filter(Boolean);
  const set = (query) => go(changed(route, query), true);
  const choose = (key) => set({ chosen: (chosen.includes(key) ? chosen.filter((one) => one !== key) : [...chosen, key]).join(",") });
  const compare = { page: "compare", query: { runs: chosen.join(",") } };
  useKeys({
    x: ["choose the run to compare, or not", () => document.activeElement.closest("tr")?.querySelector("input[type=checkbox]")?.click()],
    c: ["compare the chosen runs", () => chosen.length > 1 && go(compare)],
  });
  const { value } = answer;
  const shown = [
    nameColumn((run) => (
      <input
        type="checkbox"
        aria-label={`choose ${visible(run.name)} to compare`}
        checked={chosen.includes(run.key)}
        onChange={() => choose(run.key)}
      />
    )),
    ...figureColumns(),
    { name: "alarms", title: "alarms", down: true, value: (run) => run.alarms.length, show: (run) => <Alarms run={run} /> },
  ];
  const runs = value ? value.runs : [];
  const hits = runs.filter((run) => `${run.name} ${run.recipe} ${run.task} ${run.state}`.toLowerCase().includes(q.toLowerCase()));
  return (
    <>
      <h1>Runs{value && <Text class="quiet small"> in {value.root}</Text>}</h1>
      <Waiting answer={answer} what="the runs" />
      {value && (
        <>
          <div class="row-of-controls">
            <input
              type="search"
              data-find
              aria-label="Show only runs whose name, recipe, task or state holds this"
              placeholder="name, recipe, state"
              value={q}
              onInput={(event) => set({ q: event.target.value })}
            />
            <span class="quiet" role="status">
              {hits.length === runs.length ? count(runs.length, "run") : `${hits.length} of ${count(runs.length, "run")}`}
            </span>
            {chosen.length > 1 ? (
              <a href={format(compare)} class="action">
                Compare {chosen.length} runs
              </a>
            ) : (
              <span class="quiet">choose two or more to compare them</span>
            )}
          </div>
          <Table
            columns={shown}
            rows={sorted(hits, shown, sort)}
            id={(run) => run.key}
            caption={live ? "Each run's last step or evaluation, read anew every two seconds" : "Each run's last step or evaluation"}
            sort={sort}
            onSort={(next) => set({ sort: next })}
            cards
            empty={runs.length ? "no run is called so" : "no run here yet: make run, or name another folder"}
          />
        </>
      )}
    </>
  );
}
