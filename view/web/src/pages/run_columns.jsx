// Columns of a table of runs, for the list and for the comparison.
import { State } from "../parts/badge.jsx";
import { Progress, Share } from "../parts/figures.jsx";
import { Link } from "../parts/link.jsx";
import { fixed, moment, number, recent, share } from "../parts/numbers.js";
import { Text } from "../parts/text.jsx";

const figure = (name, title, show, hint) => ({
  name,
  title,
  hint,
  number: true,
  down: true,
  value: (run) => run.figures[name],
  show: (run) => show(run.figures[name]),
});

/** The run's name, a link; `before` is put in front of it, a box for instance. */
export function nameColumn(before = () => null) {
  return {
    name: "name",
    title: "run",
    head: true,
    show: (run) => (
      <span class="run-name">
        {before(run)}
        <span>
          <Link to={{ page: "run", key: run.key }} row>
            <Text>{run.name}</Text>
          </Link>
          <Text class="quiet under">{[run.recipe, run.task].filter(Boolean).join(", ")}</Text>
        </span>
      </span>
    ),
  };
}

/** State, step and the figures of the last step or evaluation. */
export function figureColumns() {
  return [
    { name: "state", title: "state", show: (run) => <State state={run.state} /> },
    { name: "step", title: "step", down: true, show: (run) => <Progress step={run.step} steps={run.steps} eta={run.eta} /> },
    figure("right", "right", share, "share of right answers"),
    {
      ...figure("sound", "right and sound", share, "right and called sound, of all, with its 95 % interval"),
      show: ({ figures }) => <Share value={figures.sound} low={figures.sound_low} high={figures.sound_high} />,
    },
    figure("flawed", "flawed", share, "of right answers, those that the judge calls flawed"),
    {
      ...figure("flawed_corrected", "corrected", share, "the same, corrected for the judge's errors, with its 95 % interval"),
      show: ({ figures }) => <Share value={figures.flawed_corrected} low={figures.flawed_low} high={figures.flawed_high} />,
    },
    figure("judge_f1", "judge F1", share, "of the judge against labels"),
    figure("gate", "gate", fixed, "mean exp|Δ log-probability| of sampler and trainer; 1 = equal"),
    figure("tokens_per_second", "tokens/s", number, "tokens sampled a second of the step"),
    {
      name: "updated",
      title: "updated",
      down: true,
      show: (run) => (
        <span class="nowrap" title={moment(run.updated)}>
          {recent(run.updated)}
        </span>
      ),
    },
  ];
}
