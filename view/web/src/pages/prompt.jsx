import { useTitle } from "../hooks.js";

export function PromptPage({ route, run }) {
  useTitle("prompt", run?.name);
  return <h1>Prompt</h1>;
}
