/** The λ of a group's page: a slider from 0 to 4, a field for any number from 0 to 100, and the way back to the run's own. */
export function Lambda({ lam, own, onChange, verdict }) {
  const change = (event) => {
    const value = Number(event.target.value);
    if (event.target.value !== "" && Number.isFinite(value) && value >= 0 && value <= 100) onChange(value);
  };
  return (
    <div class="lambda" role="group" aria-label="Another λ">
      <label for="lambda-slider">λ</label>
      <input id="lambda-slider" type="range" min="0" max="4" step="0.01" value={Math.min(lam, 4)} onInput={change} />
      <input type="number" min="0" max="100" step="0.01" value={lam} onInput={change} aria-label="λ as a number" />
      <button type="button" onClick={() => onChange(own)} disabled={lam === own}>
        the run's {own}
      </button>
      <div class="lambda-says">{verdict}</div>
    </div>
  );
}
