// Short words for what a record says.

/** "sound", "flawed at 2", "unknown (timeout)"; null where nothing was said. */
export function said(verdict) {
  if (!verdict) return null;
  const reason = verdict.reason ? ` (${verdict.reason.slice(0, 60)})` : "";
  return verdict.step === null || verdict.step === undefined ? `${verdict.kind}${reason}` : `${verdict.kind} at ${verdict.step}${reason}`;
}

/** "paragraph 2 is the first wrong one", "no paragraph is wrong". */
export function labelled(label) {
  return label < 0 ? "no paragraph is wrong" : `paragraph ${label} is the first wrong one`;
}

/** A prompt, text or messages, as one text. */
export function promptText(prompt) {
  if (prompt === null || prompt === undefined) return "";
  if (typeof prompt === "string") return prompt;
  if (!Array.isArray(prompt)) return JSON.stringify(prompt);
  return prompt
    .map((each) => `[${each.role}]\n${typeof each.content === "string" ? each.content : JSON.stringify(each.content)}`)
    .join("\n\n");
}
