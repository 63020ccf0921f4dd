"""What training has computed of each token: kept while it trains, written at the step's end, read back."""

import numpy as np
import pytest
import torch

from soundrl.engine.exchange import StepBatch
from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.trained_file import SCHEMA, Trained, read_trained, trained_name, write_trained
from soundrl.engine.packing import Sample, pack
from soundrl.engine.trained_values import TrainedValues
from soundrl.fapo.records import Prompt
from soundrl.kernels.linear_logprob import Logprobs

CPU = torch.device("cpu")


def test_values_stand_at_the_tokens_of_their_rollouts():
    mask = np.array([1, 0, 0, 1, 1], np.uint8)
    samples = [
        Sample(prompt_tokens=(9,), tokens=(1, 2), logprobs=(0.0, 0.0)),
        Sample(prompt_tokens=(9,), tokens=(1, 2, 3, 4, 5), mask=mask, logprobs=(0.0,) * 3),
        Sample(prompt_tokens=(9,), tokens=(1,), logprobs=(0.0,)),
    ]
    batch = StepBatch(samples, [range(0, 1), range(1, 3)], [False, False], np.array([1.0, 1.0, -1.0]), {}, None)  # type: ignore[arg-type]
    values = TrainedValues()
    assert [*values.take([], batch)] == []
    for order in ((2, 1), (0,)):  # two micro-batches, not in the order of samples
        packed = pack([batch.trained(i) for i in order], CPU)
        rows = torch.tensor([10.0 * i + k for i in order for k in range(samples[i].own)])
        values.keep(packed, Logprobs(-rows, rows / 4, rows, rows > 0))
    values.keep(pack([samples[0]], CPU), Logprobs(torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2) > 0))  # of no step
    values.keep(pack((), CPU), Logprobs(*[torch.empty(0)] * 4))
    prompts = [Prompt(id=name, text="", answer="") for name in "ab"]
    found = [*values.take(prompts, batch)]
    assert [(row.prompt_id, row.sample) for row in found] == [("b", 1), ("b", 0), ("a", 0)]
    nan = np.nan
    np.testing.assert_array_equal(found[0].logprobs, np.array([-20], np.float32))
    np.testing.assert_array_equal(found[1].logprobs, np.array([-10, nan, nan, -11, -12], np.float32))
    np.testing.assert_array_equal(found[1].entropy, np.array([2.5, nan, nan, 2.75, 3.0], np.float16))
    np.testing.assert_array_equal(found[2].entropy, np.array([0, 0.25], np.float16))
    assert [*values.take(prompts, batch)] == []  # they are taken once


def test_rows_of_all_ranks_read_back_and_damage_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 3}')
    folder, rng = tmp_path / "rollouts" / "step-000002", np.random.default_rng(0)
    folder.mkdir(parents=True)
    run = RunReader(tmp_path)
    assert run.trained(2).equals(SCHEMA.empty_table())
    rows = [Trained("p", i, *(rng.normal(size=i).astype(kind) for kind in (np.float32, np.float16))) for i in range(1200)]
    write_trained(folder / trained_name(0), rows[:1100])
    write_trained(folder / trained_name(1), rows[1100:])
    table = run.trained(2)
    assert table.column("sample").to_pylist() == [*range(1200)]
    for row in rows[::100]:
        for name in ("logprobs", "entropy"):
            np.testing.assert_array_equal(table.column(name)[row.sample].values, getattr(row, name))
    file = folder / trained_name(1)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match="trained-1.arrows: damaged .*restore it, or remove it"):
        read_trained(folder)
