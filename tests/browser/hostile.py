"""A run whose every text attacks whoever looks at it: what a policy may write, since nobody reads it first."""

from __future__ import annotations

import json
from pathlib import Path

from soundrl.engine.files.rollout_file import RolloutWriter, file_name
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Turn, Verdict

SCRIPT = "<script>window.pwned=1</script>"
HANDLER = '<img src=x onerror="window.pwned=2"><svg onload=window.pwned=3></svg><a href="javascript:window.pwned=4">click</a>'
REMOTE = "<img src=http://127.0.0.1:9/leak.png><link rel=stylesheet href=//127.0.0.1:9/x.css><iframe src=http://127.0.0.1:9></iframe>"
STYLE = "<style>body{display:none}</style></div></main></body></html>"
ANSI = "\x1b[2J\x1b[31mred\x1b]0;title\x07\x00"
BIDI = "\u202eneddih\u2066 \u200b\u200d\ufeff admin"
BOMB = (
    r"$\def\a{\b\b\b\b}\def\b{\c\c\c\c}\def\c{\d\d\d\d}\def\d{\e\e\e\e}\def\e{xxxxxxxx}\a\a\a\a$ "
    r"$\rule{99999em}{99999em}$ $\href{javascript:window.pwned=5}{\text{click}}$ $\includegraphics{http://127.0.0.1:9/x.png}$ "
    r"$\htmlStyle{position:fixed;inset:0}{x}$ $\htmlData{onload=window.pwned=6}{x}$ $\url{javascript:window.pwned=7}$ $\unknown{$"
)
NESTED = "$" + r"\frac{1}{" * 150 + "x" + "}" * 150 + "$"
DEEP = "[" * 50_000
LONG = (f"{SCRIPT} word $x^2$ \u202e " * 60_000)[:2_000_000]
TEXTS = {
    "script": f"{SCRIPT}\n\n{HANDLER}\n\n{REMOTE}\n\n{STYLE}",
    "control": f"{ANSI}\n\n{BIDI}\n\nline\rturned",
    "latex": f"{BOMB}\n\n{NESTED}\n\n" + "$x_1$ " * 1000,
    "deep": DEEP,
    "long": LONG,
    "openings": r"\(" * 200_000,
}
NAME = '"><img src=x onerror=window.pwned=8>'


def rollout(sample: int, text: str) -> Rollout:
    tokens = list(range(len(text) % 40 + 2))
    turns = (Turn(text=text[:50_000], own=True), Turn(text=TEXTS["script"], own=False, tool=NAME, failed=True), Turn(text="so", own=True))
    logprobs = [-0.5] * len(tokens)
    rest = {"finish_reason": SCRIPT, "policy_version": 1, "turns": turns if sample % 2 else ()}
    return Rollout(prompt_id=NAME, sample=sample, prompt_tokens=[1], tokens=tokens, logprobs=logprobs, text=text, **rest)  # type: ignore[arg-type]


def write(root: Path, config: dict) -> str:
    """The run, below `root`, with the settings of a real one; gives its key."""
    run = root / f"hostile {NAME}"
    folder = run / "rollouts" / "step-000001"
    folder.mkdir(parents=True)
    said = dict.fromkeys(("critique", "worker"), f"Paragraph 0: {TEXTS['script']} {BOMB} {BIDI}")
    flawed = Verdict("flawed", 0, HANDLER, **said, tokens=3, seconds=0.5, votes=(SCRIPT, "sound"))
    texts = list(TEXTS.values())
    group = Group(prompt=Prompt(id=NAME, text=f"{SCRIPT} {BOMB}", answer=HANDLER, source=NAME), rollouts=[])
    for i, text in enumerate(texts):
        group.rollouts.append(rollout(i, text))
        group.outcomes.append(Outcome.CORRECT if i < 4 else Outcome.WRONG)
        group.verdicts.append(flawed if i < 4 else None)
        group.extracted.append(HANDLER)
        group.rewards.append(0.0 if i < 4 else -1.0)
        group.advantages.append(0.5 if i < 4 else -1.0)
        group.kept.append(True)
    with RolloutWriter(folder / file_name(0, "train"), "train") as writer:
        writer.add([group])
        writer.end([len(texts)])
    config = config | {"run": config["run"] | {"name": NAME, "task": SCRIPT}}
    (run / "config.json").write_text(json.dumps(config), "utf-8")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, SCRIPT: 1.0, "reward/correct": 0.5}) + f"\n{DEEP}\n", "utf-8")
    events = [{"name": SCRIPT, "ph": "X", "ts": 10**15 + i * 10**6, "pid": 0, "tid": 0, "cat": "phase", "dur": 10**6} for i in range(3)]
    events.append(events[0] | {"name": "step", "dur": 4 * 10**6})
    (run / "trace.json").write_text("[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n", "utf-8")
    deep = root / "deep"
    deep.mkdir()
    (deep / "metrics.jsonl").write_text("", "utf-8")
    (deep / "config.json").write_text(f'{{"run": {DEEP}', "utf-8")
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "".join(f"={b:02X}" for b in c.encode()) for c in run.name)
