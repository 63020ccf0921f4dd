import { useTitle } from "../hooks.js";

export function StepPage({ route, run }) {
  useTitle("step", run?.name);
  return <h1>Step</h1>;
}
