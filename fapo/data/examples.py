"""What a run says of its prompts' forms before it starts: where an answer is looked for, tried on a reply that does as it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from soundrl.fapo.data.files import SCORER
from soundrl.fapo.data.rows import DataError
from soundrl.fapo.printable import one_line
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.answer import final_answer, written
from soundrl.fapo.verify.verifiers import needs_row, verifier_of

EXAMPLES = 3
PROMPT_END = 100  # characters of a prompt that are shown: there it says what it wants


def looks_for_forms(prompt: Prompt, verifier: str) -> bool:
    """Whether its answer is looked for in a form; `verifier`: `data.verifier`. Else someone reads the response as a whole."""
    return not needs_row(verifier) and verifier_of(prompt, verifier) != SCORER


def examples(name: str, prompts: Sequence[Prompt], verifier: str = "") -> list[str]:
    """Three lines, of a prompt each, of as many forms as there are.

    >>> asks = Prompt(id="a", text="1+1? End in a line Answer: $Answer", answer="2", form="answer_line")
    >>> examples("sums", [asks])
    ['sums: "1+1? End in a line Answer: $Answer" (answer_line): "Answer: 2" is read as "2", and the reference is "2"']
    """
    found: dict[tuple[str | None, str], Prompt] = {}
    for prompt in prompts:
        found.setdefault((prompt.form, verifier_of(prompt, verifier)), prompt)
    firsts = list(found.values())
    others = (prompt for prompt in prompts if all(prompt is not first for first in firsts))
    return [f"{name}: {example(prompt, verifier)}" for prompt in islice([*firsts, *islice(others, EXAMPLES)], EXAMPLES)]


def example(prompt: Prompt, verifier: str = "") -> str:
    """The end of a prompt, its form, and what is read of a reply in that form."""
    end, reference = quoted(asked_text(prompt)), quoted(prompt.answer)
    if not looks_for_forms(prompt, verifier):
        return f"{end}: {verifier_of(prompt, verifier)} reads the whole response; the reference is {reference}"
    reply = written(prompt.answer, prompt.form)
    found = final_answer(reply, form=prompt.form)
    read = "nothing" if found is None else quoted(found.text)
    return f"{end} ({prompt.form or 'no known form, so a box'}): {quoted(reply)} is read as {read}, and the reference is {reference}"


def quoted(text: str) -> str:
    """Its end, on one line."""
    text = one_line(text)
    return f'"{text if len(text) <= PROMPT_END else "…" + text[-PROMPT_END:]}"'


def asked_text(prompt: Prompt) -> str:
    """What the policy reads last of a prompt."""
    return prompt.text if prompt.messages is None else prompt.messages[-1]["content"]


def formless(name: str, prompts: Sequence[Prompt], verifier: str = "") -> str | None:
    """How many prompts ask for no form that is known, in a line; None where all do. DataError where most do not: whatever their replies
    say would not be found, and be wrong."""
    among = [prompt for prompt in prompts if looks_for_forms(prompt, verifier)]
    without = [prompt for prompt in among if prompt.form is None]
    if not without:
        return None
    said = f"{name}: {len(without):,} of {len(prompts):,} prompts ask for no known form of answer"
    if 2 * len(without) > len(among):
        cure = "say where answers stand by --data.form (e.g. box), or ask for it: by data.instruction, or in a chat row's own words"
        raise DataError(f"{said}, e.g. {quoted(asked_text(without[0]))}; {cure}")
    return f"{said}; a \\boxed{{…}} is looked for there"
