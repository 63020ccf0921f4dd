"""What a critic of the embedded world is worth, by kind of flaw: its verdicts on held-out solutions, one sample each, the same seeds for
every critic."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import cast

from soundrl.engine.config import Model
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic.critic import CriticRow, arith, arith_unseen
from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.ranks import alone
from soundrl.engine.samplers.sampler import Draw
from soundrl.engine.samplers.torch_sampler import TorchSampler
from soundrl.fapo.records import Verdict
from soundrl.genrm.critic_data.labelled import labelled_prompt
from soundrl.genrm.scores import score
from soundrl.genrm.verdict import parse_verdict

ROWS = 400
"""Of each set: a student's own flaws, and kinds that no critic is trained on; half of the rows are sound."""
MEASURES = {"precision": "precision", "recall": "recall", "f1": "flawed_f1", "located": "error_accuracy"}


def verdicts(folder: Path, rows: list[CriticRow]) -> list[Verdict]:
    tokenizer = load_tokenizer(folder)
    model = Model(path=str(folder), dtype="float32", max_length=144)
    encode = Encoder(tokenizer, 80)
    prompts = {row.id: labelled_prompt(row, "bench") for row in rows}
    draw = Draw(run_seed=0, phase="bench", step=0, temperature=1.0, max_new_tokens=64)
    requests = draw.requests([(id, encode(prompt)) for id, prompt in prompts.items()], 1)
    with alone() as ranks:
        rollouts = list(TorchSampler(folder, tokenizer, model, ranks).generate(requests))
    found = {r.prompt_id: parse_verdict(r.text, r.finish_reason, prompts[r.prompt_id].steps or 1) for r in rollouts}
    return [found[row.id] for row in rows]


def of_critic(folder: Path) -> dict[str, float]:
    """`exact/<kind>`: share of flawed solutions of the kind whose very step it names; `exact/unseen` over the four of them; `precision`,
    `recall`, `f1` and `located` as `soundrl.genrm.scores` has them, and `unseen/…` of the second set."""
    out: dict[str, float] = {}
    for part, make in (("", arith), ("unseen/", arith_unseen)):
        rows = cast(list[CriticRow], make(ROWS, 0, "test"))
        said, hits = verdicts(folder, rows), defaultdict[str, list[bool]](list)
        for row, verdict in zip(rows, said, strict=True):
            if row.label >= 0:
                hits[row.kind].append(verdict.kind == "flawed" and verdict.step == row.label)
        out |= {f"exact/{kind}": sum(own) / len(own) for kind, own in sorted(hits.items())}
        scores = score(rows, said)
        out |= {part + name: scores[of].value for name, of in MEASURES.items()}
    return out | {"exact/unseen": out["unseen/located"]}
