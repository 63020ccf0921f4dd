// Small marks with a word and a shape each, so that colour is never needed to tell them apart.

const STATES = {
  running: ["▶", "good"],
  ended: ["■", "calm"],
  stopped: ["‖", "warn"],
  stalled: ["!", "bad"],
  broken: ["✕", "bad"],
};
const LEVELS = { alarm: ["▲", "bad"], advice: ["→", "warn"], note: ["i", "calm"] };

/** Words in a frame; tone: good, warn, bad or calm; `one` keeps them in one line. */
export function Badge({ tone = "calm", sign = "", one = false, children, ...rest }) {
  return (
    <span class={`badge ${tone}${one ? " nowrap" : ""}`} {...rest}>
      {sign && <span aria-hidden="true">{sign} </span>}
      {children}
    </span>
  );
}

export function State({ state }) {
  const [sign, tone] = STATES[state] || ["?", "warn"];
  return (
    <Badge tone={tone} sign={sign} one>
      {state}
    </Badge>
  );
}

export function Level({ level }) {
  const [sign, tone] = LEVELS[level] || ["?", "warn"];
  return (
    <Badge tone={tone} sign={sign} one>
      {level}
    </Badge>
  );
}
