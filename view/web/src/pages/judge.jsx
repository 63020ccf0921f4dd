import { useTitle } from "../hooks.js";

export function JudgePage({ route, run }) {
  useTitle("judge", run?.name);
  return <h1>Judge</h1>;
}
