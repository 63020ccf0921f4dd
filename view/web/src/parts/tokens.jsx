import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { paths } from "../api.js";
import { useJson } from "../hooks.js";
import { COLOURINGS, reach, shade } from "../tokens.js";
import { changed } from "../route.js";
import { Waiting } from "./notice.jsx";
import { number, signed } from "./numbers.js";
import { visible } from "./safe.js";
import { Text } from "./text.jsx";

const PIECE = 8000; // tokens that the server gives at a time

/** The rollout's tokens, coloured by what the address says; values by pointer, or by arrow keys. */
export function Tokens({ route, kind, colour, rollout }) {
  const [from, setFrom] = useState(0);
  const answer = useJson(paths.tokens(route.key, route.step, kind, route.g, route.sample, from));
  const tokens = answer.value;
  const name = Object.hasOwn(COLOURINGS, colour) ? colour : "advantage";
  const length = rollout.length ?? 0;
  return (
    <section aria-labelledby="tokens-title">
      <h2 id="tokens-title">Tokens</h2>
      <nav aria-label="Coloured by">
        <ul class="chips">
          <li class="quiet">coloured by</li>
          {Object.entries(COLOURINGS).map(([each, { says }]) => (
            <li key={each}>
              <a href={changed(route, { colour: each })} aria-current={each === name ? "true" : undefined}>
                {says}
              </a>
            </li>
          ))}
        </ul>
      </nav>
      <Waiting answer={answer} what="the tokens" />
      {tokens && <Field tokens={tokens} name={name} />}
      {length > PIECE && tokens && (
        <p class="more">
          {from > 0 && (
            <button type="button" onClick={() => setFrom(Math.max(0, from - PIECE))}>
              the {PIECE.toLocaleString("en-US")} before
            </button>
          )}{" "}
          tokens {tokens.from.toLocaleString("en-US")} to {(tokens.from + tokens.ids.length - 1).toLocaleString("en-US")} of{" "}
          {length.toLocaleString("en-US")}{" "}
          {tokens.from + tokens.ids.length < length && (
            <button type="button" onClick={() => setFrom(tokens.from + tokens.ids.length)}>
              the next
            </button>
          )}
        </p>
      )}
    </section>
  );
}

/** How a token is written: hidden characters and ends of lines visible, its id where the run has no words for it. */
function written(tokens, i) {
  const piece = tokens.pieces ? tokens.pieces[i] : null;
  if (piece === null || piece === undefined) return `⟨${tokens.ids[i]}⟩`;
  return visible(piece).replaceAll("\n", "↵\n") || "⟨⟩";
}

function Field({ tokens, name }) {
  const colouring = COLOURINGS[name];
  const values = useMemo(() => colouring.values(tokens), [tokens, name]);
  const [at, setAt] = useState(0);
  const field = useRef(null);
  const list = useMemo(() => {
    const most = name === "mask" ? 1 : reach(values || []);
    return tokens.ids.map((_, i) => {
      const other = tokens.mask && !tokens.mask[i] ? " other" : "";
      return (
        <span key={i} class={`token ${shade(values ? values[i] : null, most)}${other}`} data-i={i}>
          {written(tokens, i)}
        </span>
      );
    });
  }, [tokens, values, name]);
  useEffect(() => {
    const token = field.current.querySelector(`[data-i="${at}"]`);
    token?.classList.add("here");
    if (document.activeElement === field.current) token?.scrollIntoView({ block: "nearest" });
    return () => token?.classList.remove("here");
  }, [at, list]);
  const step = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    setAt((old) => Math.min(tokens.ids.length - 1, Math.max(0, old + by)));
  };
  const point = (event) => {
    const token = event.target.closest("[data-i]");
    if (token) setAt(Number(token.dataset.i));
  };
  return (
    <>
      {!values && <p class="notice calm">This run has not recorded the {colouring.says} of its tokens; hatched stands for that.</p>}
      <Scale values={values} colouring={colouring} name={name} />
      <Values tokens={tokens} at={Math.min(at, tokens.ids.length - 1)} />
      <div
        ref={field}
        class="tokens text"
        tabIndex={0}
        role="group"
        aria-label={`${tokens.ids.length} tokens; arrow keys go through them`}
        onKeyDown={step}
        onMouseOver={point}
        onClick={point}
      >
        {list}
      </div>
    </>
  );
}

/** What the colours mean. */
function Scale({ values, colouring, name }) {
  if (!values) return null;
  if (name === "mask") {
    return (
      <p class="scale">
        <span class="token tp5">the policy's own: trains</span> <span class="token t0 other">the environment's: no loss</span>
      </p>
    );
  }
  const most = reach(values);
  const unit = colouring.unit ? ` ${colouring.unit}` : "";
  const ends = colouring.signed ? [-most, -most / 2, 0, most / 2, most] : [0, most / 4, most / 2, most];
  return (
    <p class="scale">
      {ends.map((value) => (
        <span key={value} class={`token ${shade(value, most)}`}>
          {colouring.signed ? signed(value) : number(value)}
        </span>
      ))}
      <span class="quiet">
        {unit}
        {values.length > 50 && "; the strongest colour is for the largest 2 %"}
      </span>
    </p>
  );
}

/** All that is known of one token, in words that a screen reader speaks when it changes. */
function Values({ tokens, at }) {
  if (at < 0) return <p class="quiet">No tokens.</p>;
  const trained = tokens.trained ? tokens.trained[at] : null;
  const sampled = tokens.logprobs ? tokens.logprobs[at] : null;
  const difference = trained === null || sampled === null ? null : sampled - trained;
  const own = !tokens.mask || tokens.mask[at];
  return (
    <output class="values" aria-live="polite">
      <span>
        token {(tokens.from + at).toLocaleString("en-US")}:{" "}
        <strong>
          <Text>{written(tokens, at).replace("\n", "")}</Text>
        </strong>{" "}
        (id {tokens.ids[at]})
      </span>
      <span>log-probability {signed(sampled, 4)}</span>
      <span>trainer's {signed(trained, 4)}</span>
      <span>difference {signed(difference, 4)}</span>
      <span>entropy {number(tokens.entropy ? tokens.entropy[at] : null)}</span>
      <span>advantage {signed(own ? tokens.advantage : 0)}</span>
      <span>{own ? "the policy's own" : "the environment's: no loss"}</span>
    </output>
  );
}
