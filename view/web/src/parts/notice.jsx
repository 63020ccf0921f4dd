import { Text } from "./text.jsx";

/** What a page shows until its JSON is there, and above it where the last question failed. */
export function Waiting({ answer, what }) {
  if (answer.error) {
    return (
      <p class="notice bad" role="alert">
        <Text>{answer.error}</Text> {answer.value !== undefined && "What is shown is from before. "}
        <button type="button" onClick={answer.again}>
          Ask again
        </button>
      </p>
    );
  }
  return answer.value === undefined ? <p class="quiet">Reading {what} …</p> : null;
}
