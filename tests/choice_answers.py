"""Written answers to a question of four options, by style, each with the option that a careful reader says it chooses; `-` = none at all."""

OPTIONS = ("4 m/s", "3 m/s", "5 m/s", "an infinite speed")
LONG = ("Kinetic energy", "A vector", "Both A and B", "I is the current", "All of the above", "None of the above")
"""Of the styles that begin with `long`."""

ANSWERS: dict[str, list[tuple[str, str]]] = {
    "answer line": [
        ("B", "Answer: B"), ("C", "The speed is 5.\n\nAnswer: C"), ("A", "Answer: A"), ("D", "Answer: (D)"), ("B", "ANSWER: B"),
        ("C", "**Answer:** C"), ("C", "**Answer: C**"), ("A", "Answer: **A**"), ("D", "Answer: $D$"), ("B", "Answer: $\\text{B}$"),
        ("C", "Answer: c"), ("A", "answer: a"), ("B", "Final Answer: B"), ("D", "Final answer: **D**"), ("C", "Answer:C"),
        ("B", "Answer: B."), ("C", "Answer: [C]"), ("A", "### Answer\n\nA"), ("C", "**Final Answer**\n\n**C**"), ("B", "Answer:\nB"),
        ("D", "> Answer: D"), ("C", "- **Answer**: C"), ("A", "Answer: Option A"), ("B", "Answer: `B`"), ("C", "Answer： C"),
        ("A", "Answer: A\n\nI hope this helps!"), ("C", "x = 4, so\nAnswer: C\n"), ("B", "\\textbf{Answer: B}"), ("D", "*Answer: D*"),
        ("B", "The answer: B"), ("A", "Correct answer: A"), ("C", "Correct option: C"), ("C", "The correct choice: **C**"),
    ],
    "answer line with the option's text": [
        ("C", "Answer: C) 5 m/s"), ("A", "Answer: A. 4 m/s"), ("B", "Answer: (B) 3 m/s"), ("C", "**Answer:** **C. 5 m/s**"),
        ("D", "Answer: D: an infinite speed"), ("A", "Answer: A - 4 m/s"), ("C", "Answer: C (5 m/s)"), ("B", "Answer: B) $3$ m/s"),
        ("C", "Answer: C) 5 m/s, as the two add up"), ("D", "Answer: D) An infinite speed."), ("C", "Answer: 5 m/s"), ("A", "Answer: **4 m/s**"),
    ],
    "sentence": [
        ("C", "The correct answer is C) 5 m/s"), ("B", "The answer is B."), ("A", "The answer is A."), ("D", "So the answer is (D)."),
        ("C", "Therefore, the correct answer is **C**."), ("B", "Thus the correct option is B."), ("A", "Hence, the best answer is (A) 4 m/s."),
        ("C", "The answer is therefore C."), ("D", "The correct choice is D, an infinite speed."), ("B", "the answer must be b)"),
        ("C", "The answer is option C."), ("A", "The correct answer is Option A."), ("B", "The right answer would be (B)."),
        ("C", "The answer is C because 3 and 4 make 5."), ("A", "The answer is A, since the legs differ."), ("C", "The answer is $\\mathbf{C}$."),
        ("D", "My answer is D."), ("B", "So our final answer is: **B**"), ("C", "The answer is: C"), ("A", "The answer is (a)."),
        ("C", "The most appropriate answer is **(C) 5 m/s**."), ("B", "The correct letter is B."), ("D", "The correct answer is thus \"D\"."),
        ("A", "The answer is A as the speed is 4 m/s."), ("C", "The answer is C, not A."), ("B", "The correct answer is B rather than D."),
        ("C", "The correct option is (C), because (A) and (B) ignore a leg."), ("C", "The answer is 5 m/s."), ("D", "The answer is an infinite speed."),
    ],
    "box": [
        ("C", "\\boxed{C}"), ("A", "So $\\boxed{A}$."), ("B", "\\boxed{\\text{B}}"), ("D", "\\boxed{(D)}"), ("C", "\\boxed{\\textbf{(C)}\\ 5}"),
        ("C", "\\boxed{\\textbf{(C)}\\ 5\\text{ m/s}}"), ("A", "\\boxed{\\mathrm{A}}"), ("B", "\\boxed{B.}"), ("C", "\\boxed{C) 5 m/s}"),
        ("A", "\\boxed{a}"), ("D", "\\boxed{\\text{D}}\n\nThat is it."), ("C", "Answer: \\boxed{C}"), ("B", "The answer is $\\boxed{\\text{(B)}}$."),
        ("C", "\\boxed{\\text{Option C}}"), ("C", "\\boxed{5 \\text{ m/s}}"), ("A", "\\[\\boxed{A}\\]"), ("B", "**Answer:** $\\boxed{B}$"),
        ("C", "$\\boxed{\\text{C. 5 m/s}}$"), ("D", "\\fbox{D}"), ("B", "\\boxed{\\mathbf{B}}"),
    ],
    "tag and hashes": [
        ("C", "<answer>C</answer>"), ("A", "<answer> A </answer>"), ("B", "<answer>(B)</answer>"), ("D", "<answer>\nD\n</answer>"),
        ("C", "<answer>C) 5 m/s</answer>"), ("B", "<answer>\\boxed{B}</answer>"), ("C", "#### C"), ("A", "x\n#### A"), ("B", "#### (B) 3 m/s"),
        ("D", "<Answer>D.</Answer>"), ("C", "<think>Is it A?</think><answer>C</answer>"), ("C", "<answer>The answer is C.</answer>"),
    ],
    "JSON": [
        ("C", '{"answer": "C"}'), ("A", '```json\n{"answer": "A"}\n```'), ("B", '{"reasoning": "3", "answer": "B"}'), ("D", '{"Answer": "D) an infinite speed"}'),
        ("C", '```json\n{\n  "answer": "C"\n}\n```'), ("B", '{"answer": "(B)"}'),
    ],
    "choosing": [
        ("C", "I choose C."), ("B", "I would choose option B."), ("A", "I'll go with A."), ("D", "I would go with (D)."), ("C", "So I select **C**."),
        ("B", "I pick B, 3 m/s."), ("C", "Therefore I choose option (C)."), ("C", "Option C is correct."), ("A", "Option A is the correct answer."),
        ("B", "(B) is the right answer."), ("D", "Option (D) is correct."), ("C", "**Option C** is the best choice."), ("C", "C is the correct answer."),
        ("B", "B) 3 m/s is correct."), ("C", "So **(C) 5 m/s** is the correct answer."), ("D", "Choice D is correct."),
    ],
    "last line": [
        ("C", "C"), ("A", "A"), ("B", "B."), ("D", "(D)"), ("C", "**C**"), ("B", "**(B)**"), ("C", "It is 5.\n\nC"), ("C", "It is 5.\n**C.**"),
        ("C", "C) 5 m/s"), ("A", "A. 4 m/s"), ("B", "**B) 3 m/s**"), ("D", "So it has none.\n\n(D) an infinite speed"), ("C", "Option C"),
        ("C", "\\textbf{(C)}\\ 5 m/s"), ("A", "$\\textbf{(A)}$"), ("C", "C: 5 m/s"), ("C", "The sum is 25, its root 5.\nC."), ("B", "`B`"),
        ("C", "5 m/s"), ("b".upper(), "b)"), ("C", "Option C: 5 m/s"), ("D", "D\n"),
    ],
    "thinking before": [
        ("C", "<think>Answer: A. No, B.</think>Answer: C"), ("B", "<think>\\boxed{A}</think>\n\nThe answer is B."), ("-", "<think>Answer: C"),
        ("-", "<think>The answer is C</think>I do not know."), ("C", "Let me try A first. That fails.\n\nAnswer: C"),
        ("B", "At first, the answer is A, I thought.\n\nChecking again, the answer is B."), ("D", "\\boxed{A}\n\nThat was wrong.\n\n\\boxed{D}"),
    ],
    "options quoted": [
        ("C", "A) 4 m/s\nB) 3 m/s\nC) 5 m/s\nD) an infinite speed\n\nAnswer: C"), ("-", "A) 4 m/s\nB) 3 m/s\nC) 5 m/s\nD) an infinite speed"),
        ("-", "The options are\n\nA) 4 m/s\n\nB) 3 m/s\n\nC) 5 m/s\n\nD) an infinite speed"), ("-", "Choose from (A), (B), (C) or (D)."),
        ("B", "Answer: B\n\n(A) 4 m/s\n(B) 3 m/s\n(C) 5 m/s"), ("C", "(A) 4 is too low. (B) 3 is too low. (D) is absurd.\n\nSo the answer is (C)."),
        ("C", "Option A is wrong. Option B is wrong. Option D is wrong. Option C is correct."), ("-", "Option A is incorrect, and so is option B."),
        ("B", "- A: 4 m/s: too much\n- B: 3 m/s: right\n\n**Answer: B**"), ("-", "Is option C correct? Nobody knows."),
    ],
    "letters as words": [
        ("C", "A body moves; I see a triangle.\n\nAnswer: C"), ("-", "A body moves. I see that A is a point."), ("-", "The answer is a number."),
        ("-", "The answer is A vector of some kind"), ("C", "The answer is C. A body that moves so is fast, I think."), ("-", "The answer is I think unclear"),
        ("-", "I go with a friend."), ("-", "Vitamin C is good. Plan B is the best."[:17]), ("B", "Answer: B\nA note: I used a triangle."),
        ("-", "The answer is found by a sum of A and B."), ("-", "a"[:0] + "It is a case of A + B = C."), ("-", "Let C = 5 and A = 4."),
    ],
    "hedged": [
        ("-", "Answer: C or D"), ("-", "Answer: A, B"), ("-", "Answer: C/D"), ("-", "The answer is B or C."), ("-", "The answer is either C or D."),
        ("-", "\\boxed{C} or \\boxed{D}"), ("-", "\\boxed{C, D}"), ("-", "\\boxed{CD}"), ("-", "Answer: C\nAnswer: D"), ("-", "The answer is C. The answer is D."),
        ("-", "Answer: C. Wait, perhaps D."), ("-", "The answer is C, or maybe (D)."), ("-", "<answer>C</answer><answer>D</answer>"), ("-", "Answer: C?"),
        ("-", "Answer: not C"), ("-", "The answer is not C."), ("-", "Answer: C) 5 m/s or D) an infinite speed"), ("-", "Answer: A and C"),
        ("-", "I choose C. Actually, I choose B."), ("-", "#### C or D"), ("-", '{"answer": "C or D"}'), ("-", "Answer: neither A nor B"),
        ("-", "Option C is correct. Option D is correct."), ("-", "Both C and D are correct."), ("-", "Answer: A, B, C, or D"), ("-", "Answer: ABCD"),
        ("-", "The answer could be C"), ("-", "Answer: C, but it might be D"), ("-", "Answer: all of them"), ("-", "Answer: (C), (D)"),
        ("-", "The answer is C & D."), ("-", '{"answer": ["C", "D"]}'), ("-", "Answer: C\n\nAnswer: unclear"), ("-", "Answer: C | D"),
    ],
    "another option's text": [
        ("-", "Answer: A) 5 m/s"), ("-", "The correct answer is B) 5 m/s."), ("-", "\\boxed{A) 5 m/s}"), ("-", "Answer: D. 5 m/s"), ("-", "A. 5 m/s"),
        ("-", "The answer is A (5 m/s)."), ("-", "Answer: C) 3 m/s"), ("-", "<answer>B: 5 m/s</answer>"), ("-", "Answer: E"), ("-", "Answer: 7 m/s"),
    ],
    "nothing": [
        ("-", ""), ("-", "I do not know."), ("-", "\\boxed{}"), ("-", "\\boxed{C"), ("-", "Answer:"), ("-", "<answer>C"), ("-", "The speed is large."),
        ("-", "Answer: $LETTER"), ("-", "ABC"), ("-", "The last line is 'Answer: $LETTER' where LETTER is one of ABCD."), ("-", "C is 5 m/s and D is infinite."),
        ("-", "Cannot be determined"), ("-", "Bravo"),
    ],
    "long options": [
        ("C", "Answer: C) Both A and B"), ("C", "The answer is (C) Both A and B."), ("E", "Answer: E. All of the above"), ("F", "None of the above"),
        ("D", "Answer: (D) I is the current"), ("B", "The correct answer is B: A vector."), ("A", "**A. Kinetic energy**"), ("E", "\\boxed{E}"),
        ("C", "\\boxed{\\text{Both A and B}}"), ("D", "I is the current"), ("F", "The answer is F, as neither holds."), ("-", "Answer: A) A vector"),
        ("-", "Both A and B are vectors."), ("B", "A vector"),
    ],
}  # fmt: skip
