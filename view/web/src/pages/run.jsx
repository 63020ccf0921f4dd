import { useMemo, useState } from "preact/hooks";
import { useTitle } from "../hooks.js";
import { Level } from "../parts/badge.jsx";
import { Faults } from "../parts/faults.jsx";
import { Progress, Share } from "../parts/figures.jsx";
import { Jumps } from "../parts/jumps.jsx";
import { fixed, moment, number, share } from "../parts/numbers.js";
import { Text } from "../parts/text.jsx";
import { format, go } from "../route.js";
import { useSeries } from "../series.js";
import { BeforeAfter, Ledger, Phases, Settings } from "./run_facts.jsx";
import { RunCurves } from "./run_curves.jsx";

function Facts({ run }) {
  const { figures } = run;
  const shown = [
    ["step", <Progress step={run.step} steps={run.total} eta={run.eta} />],
    ["right", share(figures.right)],
    ["right and sound", <Share value={figures.sound} low={figures.sound_low} high={figures.sound_high} />],
    ["flawed, as judged", share(figures.flawed)],
    ["flawed, corrected", <Share value={figures.flawed_corrected} low={figures.flawed_low} high={figures.flawed_high} />],
    ["judge F1", share(figures.judge_f1)],
    ["gate", fixed(figures.gate)],
    ["tokens a second", number(figures.tokens_per_second)],
  ];
  return (
    <dl class="facts">
      {shown.map(([title, value]) => (
        <div key={title}>
          <dt>{title}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function Advice({ run }) {
  if (!run.advice.length) return <p class="quiet">Nothing: no alarm, and nothing to tune that the figures show.</p>;
  return (
    <ul class="advice">
      {run.advice.map((one, i) => (
        <li key={`${one.what}${i}`} class={`advice-${one.level}`}>
          <Level level={one.level} />
          <div>
            <p>
              <b>
                <Text>{one.what}</Text>
              </b>
              {one.link?.startsWith("#/") && (
                <>
                  {" "}
                  <a href={one.link} data-row="">
                    look<span class="unseen"> at: {one.what}</span>
                  </a>
                </>
              )}
            </p>
            {one.why && (
              <p class="quiet">
                <Text>{one.why}</Text>
              </p>
            )}
            {one.do && (
              <p>
                <Text>{one.do}</Text>
              </p>
            )}
          </div>
        </li>
      ))}
    </ul>
  );
}

const LATELY = 30; // steps that are listed at once

function Steps({ run }) {
  const [all, setAll] = useState(false);
  const kinds = Object.entries(run.steps).filter(([, steps]) => steps.length > 0);
  if (!kinds.length) return <p class="quiet">No step has rollouts yet.</p>;
  const words = { train: "training", eval: "evaluations", replaced: "groups that were replaced" };
  return (
    <>
      <form
        class="row-of-controls"
        onSubmit={(event) => {
          event.preventDefault();
          const step = Number(new FormData(event.target).get("step"));
          if (Number.isInteger(step) && step >= 0) go({ page: "step", key: run.key, step });
        }}
      >
        <label>
          go to step <input name="step" type="number" min="0" max={Math.max(...kinds.flatMap(([, steps]) => steps.at(-1)))} required />
        </label>
        <button>Open</button>
      </form>
      {kinds.map(([kind, steps]) => (
        <div key={kind}>
          <h3>{words[kind] || kind}</h3>
          <ul class="steps">
            {[...steps]
              .reverse()
              .slice(0, all ? steps.length : LATELY)
              .map((step) => (
                <li key={step}>
                  <a
                    href={format({ page: "step", key: run.key, step, query: kind === "train" ? {} : { kind } })}
                    data-row=""
                    aria-label={`${words[kind]}, step ${step}`}
                  >
                    {step}
                  </a>
                </li>
              ))}
          </ul>
          {!all && steps.length > LATELY && (
            <button type="button" onClick={() => setAll(true)}>
              All {steps.length}
            </button>
          )}
        </div>
      ))}
    </>
  );
}

export function RunPage({ route, run }) {
  useTitle(run?.name, run && `step ${run.step ?? "—"}`);
  const goesOn = run?.state === "running" || run?.state === "stalled";
  const keys = useMemo(() => [route.key], [route.key]);
  const { data, error } = useSeries(keys, goesOn ? 2000 : 15000); // asked for beside the run's own JSON, not after it
  if (!run) return <h1>Run</h1>;
  return (
    <>
      <h1>
        <Text>{run.name}</Text>
      </h1>
      <p class="quiet">
        <Text>{[run.recipe, run.task].filter(Boolean).join(", ")}</Text> · begun {moment(run.started)} · last written {moment(run.updated)}
      </p>
      <Faults faults={[run.fault, ...(run.faults || [])].filter(Boolean)} />
      <Facts run={run} />
      <Jumps />
      <h2>What to do</h2>
      <Advice run={run} />
      <RunCurves route={route} run={run} series={data[route.key]} error={error} />
      <h2>Before and after</h2>
      <BeforeAfter run={run} />
      <div class="columns">
        <section aria-labelledby="time">
          <h2 id="time">Where the time went</h2>
          <Phases run={run} />
        </section>
        <section aria-labelledby="memory">
          <h2 id="memory">Memory</h2>
          <Ledger run={run} />
        </section>
        <section aria-labelledby="settings">
          <h2 id="settings">Settings</h2>
          <Settings run={run} />
        </section>
      </div>
      <h2>Steps</h2>
      <Steps run={run} />
    </>
  );
}
