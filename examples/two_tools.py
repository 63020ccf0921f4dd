"""A shop: a price list that the policy cannot know, and a calculator, so that it must call both to be right.

    python engine/train.py smollm2-gsm8k --data.train examples/two_tools.py:make --data.test --warm-start.steps 0

Tools run in processes of their own. They must be functions at the top of a file; what they are told to the policy as is their docstring.
"""

import random

from soundrl.engine.environments.tools import ToolEnvironment
from soundrl.fapo.records import Prompt

PRICES = {"apple": 35, "pear": 48, "plum": 17, "melon": 290}


def price(item: str) -> int:
    """Price of one fruit in cents: apple, pear, plum or melon."""
    return PRICES[item]


def times(a: int, b: int) -> int:
    """The product of two integers."""
    return a * b


class Shop(ToolEnvironment):
    tools = (price, times)

    def problems(self, left_out):
        draw = random.Random(self.config.run.seed)
        return [self.asked(f"shop:{i}", draw.choice(sorted(PRICES)), draw.randint(2, 99)) for i in range(500)]

    def asked(self, id, item, count):
        text = f"What do {count} of the fruit {item} cost, in cents? Put your answer within \\boxed{{}}."
        return Prompt(id=id, text=text, messages=({"role": "user", "content": text},), answer=str(count * PRICES[item]))


make = Shop
