import { useTitle } from "../hooks.js";

export function FindPage({ route, run }) {
  useTitle("find", run?.name);
  return <h1>Find</h1>;
}
