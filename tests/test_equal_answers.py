r"""What counts as equal and what does not: styles, signs, units, percentages, names, choices.

Each list is a kind with many of its spellings; the reference stands first. The parser behind is called here without its process.
"""

import pytest

from soundrl.fapo.records import Outcome
from soundrl.fapo.verify.answer import final_answer
from soundrl.fapo.verify.box import final_box
from soundrl.fapo.verify.compare import compare
from soundrl.fapo.verify.rule import rule

EQUAL = [
    ("13", "13"), ("13", r"\text{13}"), ("13", r"\mathrm{13}"), ("13", r"\textbf{13}"), ("13", r"\mathbf{13}"),
    ("13", r"\boldsymbol{13}"), ("13", r"\bm{13}"), ("13", r"{\bf 13}"), ("13", r"\underline{13}"), ("13", r"\textcolor{red}{13}"),
    ("13", r"\color{blue}{13}"), ("13", r"\color{blue}13"), ("13", r"\large 13"), ("13", r"\Large{13}"), ("13", r"\emph{13}"),
    ("13", r"\mathtt{13}"), ("13", r"\mathbf{\text{13}}"), ("13", "**13**"), ("13", r"\text{ 13 }"), ("13", r"\text{13.}"),
    ("13", r"\displaystyle 13"), ("13", r"{\tiny 13}"), ("13", r"\it 13"), ("13", r"{\rm 13}"), ("13", r"{\color{red}13}"),
    ("13", r"\colorbox{yellow}{$13$}"), ("13", r"\bold{13}"), ("13", r"\pmb{13}"), ("13", r"\mathsf{13}"), ("13", r"\textsf{13}"),
    ("13", r"\textbf{\textit{\underline{13}}}"), ("13", r"\fcolorbox{red}{white}{\bf 13}"), ("13", r"\color[rgb]{1,0,0}13"),
    ("13", r"\textcolor[HTML]{FF0000}{13}"), ("13", "__13__"), ("13", "`13`"), ("13", "***13***"), ("13", r"\mathbf 13"),
    ("13", r"\mathbf{1}3"), ("13", r"\textbf{**13**}"), ("13", r"$\bf{13}$"), ("13", r"\textbf{x = 13}"), ("13", r"\mathit{13}"),
    ("13", r"\mathbf{x}=\mathbf{13}"), ("13", r"\text{x = 13}"), ("13", r"\Huge\color{red}{\textbf{13}}"), ("13", r"\text{$13$}"),
    ("13", r"\textnormal{13}"), ("13", r"\textup{13}"), ("13", r"\ensuremath{13}"), ("13", r"\boldsymbol{\mathbf{13}}"),
    ("13", r"\style{color:red}{13}"), ("13", r"\underline{\underline{13}}"), ("13", r"\text{\large 13}"),
    (r"\frac{3}{4}", r"\mathbf{\frac{3}{4}}"), (r"\frac{3}{4}", r"\boldsymbol{\frac{3}{4}}"), (r"\frac{3}{4}", r"\text{3/4}"),
    (r"\frac{3}{4}", r"\dfrac{\mathbf{3}}{\mathbf{4}}"), (r"\frac{3}{4}", r"\textcolor{blue}{\frac34}"),
    (r"\frac{3}{4}", r"\frac{\text{3}}{\text{4}}"), (r"\frac{3}{4}", r"\mathbf{\dfrac34}"),
    (r"\frac{3}{4}", r"\frac\mathbf{3}\mathbf{4}"), (r"\frac{3}{4}", r"{3\over 4}"), (r"\frac{3}{4}", r"\frac{{3}}{{4}}"),
    (r"\frac{3}{4}", r"\textbf{\frac{3}{4}}"), (r"2\sqrt{3}", r"\mathbf{2\sqrt{3}}"), (r"2\sqrt{3}", r"\boldsymbol{2\sqrt{3}}"),
    (r"2\sqrt{3}", r"\textcolor{red}{2\sqrt{3}}"), (r"2\sqrt{3}", r"2\sqrt{\mathbf{3}}"), (r"2\sqrt{3}", r"\mathbf{2}\sqrt{3}"),
    ("12", r"\text{12 hours}"), ("12", r"12\text{ hours}"), ("12", r"\text{12 cm}"), ("12", r"\mathrm{12\ cm}"), ("12", r"\text{\$12}"),
    ("12", r"\text{12 dollars}"), ("12", "12 apples"), ("12", r"\textbf{12 apples}"), ("12", r"\mathbf{12} \text{ red marbles}"),
    ("12", r"12 \text{ eggs per day}"), ("12", r"\textbf{12} cm"), ("12", r"\text{12 square feet}"), ("12", "12 sq. units"),
    ("12", r"12 \text{ years old}"), ("12", r"12 \text{ people}"), ("12", r"12\text{ lbs.}"), ("12", "12 people"), ("12", "12 hours."),
    (r"12\text{ cm}", r"\text{12 cm}"), (r"12 \mathrm{~cm}", r"\mathrm{12~cm}"), ("0.5", r"\text{0.5}"), ("-3", r"\text{-3}"),
    ("-3", r"-\mathbf{3}"), ("(2,3)", r"\mathbf{(2,3)}"), ("(2,3)", r"(\mathbf{2},\text{3})"), ("x=3", r"\mathbf{x=3}"),
    ("x=2,y=3", r"\mathbf{x=2, y=3}"), (r"2\mathbf{i}+3\mathbf{j}", "2i+3j"), ("x^2", r"\mathbf{x}^\mathbf{2}"),
    (r"\text{Yes}", r"\textbf{Yes}"), (r"\text{Yes}", r"\mathbf{Yes}"), ("1{,}000", r"\mathbf{1{,}000}"), ("[1,2)", r"\mathbf{[1,2)}"),
    ("1,2", "1\uff0c2"), ("(1,2)", "\uff081\uff0c2\uff09"), ("(1,2)", "(1\uff0c2)"), ("3", "x\uff1d3"), (r"50\%", "50\uff05"),
    ("3:4", "3\uff1a4"), ("2", "2。"), ("-3", "\uff0d3"), ("5", "\uff0b5"), ("10^5", "10⁵"), ("1/2", "1⁄2"), ("5", "5\u200b"),
    ("x>2", "x\uff1e2"), ("7", "\uff17"), ("12", "\uff11\uff12"), ("100000", "10⁵"), ("x^2", "x²"), ("x_1", "x₁"), ("10^{-3}", "10⁻³"),
    ("0.001", "10⁻³"), (r"\frac{3}{8}", "⅜"), ("5/2", "2½"), (r"2\pi", "2π"), (r"\sqrt{2}", "√2"), (r"2\sqrt{3}", "2√3"),
    (r"x\le 3", "x≤3"), (r"x\le 3", "x ⩽ 3"), (r"\infty", "∞"), ("6", "6\u00a0"), ("1000", "1\u2009000"), (r"\mathbb{R}", "ℝ"),
    (r"\{1,2\}", "\uff5b1\uff0c2\uff5d"), (r"90^\circ", "90°"), ("1, 2", "1、2"), ("-3", "\u20113"), (r"\alpha", "α"), ("7", "\ufeff7"),
    ("a_{10}", "a₁₀"), (r"3\times 10^{8}", "3×10⁸"), (r"\frac{1}{2}", "1∕2"), (r"\emptyset", "∅"), ("x+1", "x\uff0b1"),
    (r"5\text{ cm}^2", "5 cm²"), ("3:4", "3∶4"), ("25", r"25\%"), ("25", "25 percent"), (r"25\%", "0.25"), (r"25\%", r"\frac14"),
    (r"25\%", r"25 \text{ per cent}"), ("25", r"25 \text{ per cent}"), (r"25\%", r"25 \text{ percent}"), (r"12.5\%", "0.125"),
    ("x=2,y=3", "(2,3)"), ("(2,3)", "x=2,y=3"), (r"\exp(x^2)", "e^{x^2}"), ("A", "A) 5 m/s"), ("C", r"\textbf{(C)}\ 12"),
    ("A", r"\text{Option A}"), ("A", "A: the ionic bond"), ("A", r"\text{A. }10^{-4}"), ("A", r"\text{(A) 5 m/s}"), ("A", "Option (A)"),
    ("A", r"\textbf{A}"), ("A", "(A)"), ("A", "A."), ("Yes", r"\text{Yes, it converges}"), ("No", r"\text{No, because it diverges}"),
    (r"\frac{n(n+1)}2", r"\binom{n+1}{2}"), ("204_5", "204"), ("204_5", r"204_{\text{five}}"), (r"60^\circ", "60"), ("60", r"60^\circ"),
    (r"60^\circ", r"60\text{ degrees}"), (r"60^\circ", r"60 \text{ deg}"), (r"20^\circ C", r"20^\circ\text{C}"),
    ("7", r"\text{Area} = 7"), ("7", r"\text{Area of } ABC = 7"), ("7", r"\angle ABC = 7"), ("7", "AB = 7"), ("7", "f(2)=7"),
    ("7", "f'(2)=7"), ("7", "P(A)=7"), ("7", r"\overline{AB} = 7"), (r"\frac{3}{4}", r"\frac{AB}{CD}=\frac34"), ("7", "a_n = 7"),
    ("7", r"\theta=7"), ("7", "[ABC]=7"), ("7", "area = 7"), (r"5 \text{ million}", "5 million"),
    (r"5 \text{ million}", r"5.0 \text{ million}"), ("7", r"7 \text{ months}"), (r"\$7", r"7 \text{ dollars}"), (r"6 \text{ deer}", "6"),
    (r"18\text{ eggs}", r"18 \text{ eggs}"), ("7", r"\textbf{\textcolor{blue}{7}}"), ("7", r"{\Large \textbf{7}}"),
    ("7", r"\large{\boxed{7}}"), ("7", r"\boldsymbol{7}\text{ apples}"), ("7", r"7\,\text{units}"), ("7", r"\text{$7$ dollars}"),
    ("7", r"\$\mathbf{7}"), ("7", r"\mathbf{\$7}"), ("70,000", r"\$70{,}000"), ("70000", r"\textbf{\$70,000}"),
    ("18", r"18 \text{ eggs left}"), ("5", r"5 \text{ more apples}"), ("5", r"5 \text{ students in the class}"),
    ("5", r"5\text{ feet tall}"), ("3", r"3 \text{ times}"), ("64", r"\$64"), ("64", r"64\text{ USD}"),
    ("540", r"540 \text{ meters per week}"), ("20", r"20 \text{ cups of feed}"), ("260", r"260 \text{ sheep}"),
    ("160", r"160 \text{ min}"), ("45", r"45 \text{ miles from home}"), ("460", r"\$460 \text{ this week}"),
    ("366", r"366 \text{ downloads}"), ("694", r"\$694.00"), ("5", r"5 \text{ bouquets}"), ("8", r"8 \text{ slices of pizza}"),
    ("14", r"14 \text{ girls}"), ("1/2", r"\frac12 \text{ cup}"), ("3", r"3 \text{ boxes}"), ("7", r"7 \text{ classes}"),
    ("7", r"7 \text{ glasses}"), ("7", r"7 \text{ buses}"), ("7", r"7 \text{ ounces}"), ("12", r"12 \text{ in}^2"),
    ("12", r"12 \text{ square units}"), ("12", r"12 \, \text{units}^3"), ("12", r"12\ \mathrm{m/s^2}"), ("12", r"12 \text{ km/h}"),
    ("12", r"12\%"), (r"12\text{ cm}^2", r"12\ \mathrm{cm}^{2}"), (r"12\text{ m/s}", r"12\ \mathrm{m/s}"),
    (r"72^\circ", r"\mathbf{72^\circ}"), (r"\frac{\pi}{3}", r"\frac{\pi}{3} \text{ radians}"), ("p^2-p", r"\boldsymbol{p^2-p}"),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi/2)"), (r"\text{(B)}", "B"), ("B", r"\mathrm{B}"), ("B", r"\text{B) } 7"),
    ("B", r"\textbf{B. }7"), ("B", "B: 7"), ("B", r"\boxed{B}"), ("B", r"\mathbf{(B)}\,7"), ("B", r"\text{The answer is B}"),
    ("B", r"\text{Choice B}"), ("Yes", "yes"), ("Yes", r"\text{YES}"), ("No", r"\text{No.}"), ("True", r"\textbf{True}"),
    ("Yes", r"\text{Yes: both hold}"), ("x=5", r"\mathbf{x=5}"), ("x=5", r"x = \mathbf{5}"), ("5", r"x = \text{5}"),
    ("(2,3)", r"\left(\mathbf{2},\ \mathbf{3}\right)"), ("1,2", r"\mathbf{1},\mathbf{2}"), ("1,2", r"\text{1 and 2}"),
    ("1,2", r"\text{1, 2}"), ("1,2", r"x=1 \text{ or } x=2"), ("1,2", r"1 \quad \text{and} \quad 2"), (r"\{1,2\}", r"\mathbf{\{1,2\}}"),
    ("x=1,y=2,z=3", "(1,2,3)"), ("x=1,y=2", r"\left(1, 2\right)"), ("(x,y)=(1,2)", "(1,2)"), ("(1,2)", "(x,y)=(1,2)"),
    ("a=1,b=2", r"a = 1 \text{ and } b = 2"), ("3x+2", r"\mathbf{3x+2}"), ("3x+2", r"3\mathbf{x}+2"), (r"\sqrt{2}", r"\mathbf{\sqrt{2}}"),
    (r"\sqrt{2}", r"\sqrt{\mathbf{2}}"), (r"\pi", r"\boldsymbol{\pi}"), (r"2\pi", r"2\boldsymbol\pi"), ("1000000", "1,000,000"),
    ("1000000", "10^6"), ("-7", "\uff0d\uff17"), ("7/2", "\uff17\uff0f\uff12"), ("x^2+1", "x\u00b2\uff0b1"), ("x≥2", r"x\ge 2"),
    (r"60^\circ", "60º"), ("3.5", "3\uff0e5"), ("(1,2]", "\uff081\uff0c2\uff3d"), ("50", "50\uff05"), (r"2\times 3^2", "2×3²"),
    ("10", "\u200b10\u200b"), ("5", "5\u3000"), (r"\pm 3", "±3"), ("1/3", "⅓"), (r"x\neq 2", "x≠2"), ("2^{10}", "2¹⁰"), ("x_{12}", "x₁₂"),
    ("A", "\uff21"), ("7", "“7”"), ("7", r"\\text{7}"), ("7", "7\\\\"), ("7", r"\\[7\\]"), (r"50\%", r"50\text{\%}"),
    (r"50\%", r"\mathbf{50\%}"), (r"50\%", r"\frac{1}{2}"), ("50", r"50\text{ percentage}"), ("33.3", r"33.3\%"),
    (r"\frac{1}{2}\%", r"0.5\%"), (r"100\%", "1"), (r"5\%", "0.05"), ("204_5", "204_{5}"), ("1A_{16}", "1A"),
    ("11001_2", r"11001_{\text{two}}"), (r"\exp(2x)", "e^{2x}"), (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    (r"\frac{n(n-1)}{2}", r"\dbinom{n}{2}"), ("0.5", ".5"), ("7", r"7.\overline{0}"), (r"\text{odd}", "odd"),
    (r"\text{odd}", r"\mathbf{odd}"), ("even", r"\textit{even}"), ("7", r"\text{Total} = 7"), ("7", r"\text{Answer: } 7"),
    ("7", r"\text{Answer: 7}"), ("7", "N=7"), ("7", r"m\angle A = 7"), ("7", r"\angle A = 7^\circ"), ("7", r"|\overline{AB}| = 7"),
    ("7", r"\text{Area}(ABC)=7"), ("7", "n = 7"), ("7", "S_{10}=7"), (r"\frac{3}{4}", r"P(\text{both red}) = \frac34"),
    ("7", "f^{-1}(3)=7"), ("7", r"\text{number of ways} = 7"), ("7", "a_{n+1}=7"), ("7", r"BC = 7\text{ cm}"), ("7", r"x=7\text{ cm}"),
]  # fmt: skip
DIFFERENT = [
    ("7", r"7 \text{ thousandths}"), ("7", r"7\text{ tenths}"), ("7", r"7\text{ factorial}"), ("7", r"7 \text{ dozen}"), ("7", "7 dozen"),
    ("7", r"7\text{ squared}"), ("7", r"7\text{ cubed}"), ("7", r"7 \text{ hundred}"), ("7", r"7 \text{ million}"),
    ("7", r"7 \text{ mod } 5"), ("7", r"7 \text{ base } 7"), ("7", r"7\text{ or }8"), ("7", r"7 \text{ halves}"), ("7", r"7\text{ half}"),
    ("7", r"7 \text{ double}"), ("7", r"7\text{th}"), ("7", r"7 \text{ negative}"), ("7", r"7 \text{ below zero}"),
    ("7", r"7 \text{ degrees below zero}"), ("7", r"7 \text{ times 2}"), ("7", r"7\text{ quarters}"), ("7", r"7 \text{ thirds}"),
    ("7", r"7 \text{ percent off}"), ("7", r"7 \text{ minus 1}"), ("7", r"7\text{ less than } x"), ("7", r"7 \text{ foo}"),
    ("7", "7 tenths"), ("7", "7 squared"), ("7", r"7 \text{ pi}"), ("7", r"7\text{ radians}x"), ("7", r"7\text{ gross}"),
    ("7", r"\text{7 thousandths}"), ("7", r"\mathbf{7}\text{ tenths}"), ("7", r"7 \text{ dollars lost}"), ("7", r"7 \text{ k}"),
    ("7", r"7\text{K dollars}"), ("7", r"7\text{ thousand dollars}"), ("7", r"\text{twice }7"), ("7", r"\text{negative } 7"),
    ("7", r"\text{not } 7"), ("7", r"\text{half of }7"), ("7", r"7\text{ inverse}"), ("7", r"7 \text{ i}"), ("7", r"7\text{!}"),
    ("7", r"7\text{ log}"), ("7", r"7 \text{ ninths}"), ("7", r"7 \text{ twelfths}"), ("7", r"7\text{ tens}"), ("7", r"7 \text{ crores}"),
    ("7", r"7 \text{ lakh}"), ("7", r"7\text{ mille}"), ("7", r"7\text{ recurring}"), ("7", r"7\text{ repeating}"),
    ("7", r"7\text{ choose }2"), ("7", r"7\text{ C }2"), ("7", r"7\text{ in debt}"), ("7", r"\text{minus }7"),
    ("7", r"7 \text{ trillions}"), ("7", r"7 \text{ ppm}"), ("7", r"7 \text{ parts per million}"), ("7", r"7\text{ per thousand}"),
    ("7", "|x| = 7"), ("7", r"\sqrt{x} = 7"), ("7", "x^y = 7"), ("7", r"\log x = 7"), ("7", "2x = 7"), ("7", "-x = 7"), ("7", "1/x=7"),
    ("7", "x! = 7"), ("7", "x' = 7"), ("7", "x+1 = 7"), ("7", "xy=7"), ("7", r"\frac{x}{y}=7"), ("7", r"\frac{1}{x}=7"),
    ("7", r"\ln x=7"), ("7", r"\sin x = 7"), ("7", "x^2=7"), ("7", r"\text{twice } x = 7"), ("7", r"\text{double }x=7"),
    ("7", "n(n+1)=7"), ("7", "x(x+1)=7"), ("7", "x(2)=7"), ("7", r"\lfloor x\rfloor=7"), ("7", r"\overline{x}=7"), ("7", r"\bar x=7"),
    ("7", r"\hat{x}=7"), ("7", "x^{-1}=7"), ("7", "x_1+x_2=7"), ("7", "ab=7"), ("7", r"\max x=7"), ("7", r"\|v\| = 7"),
    ("7", r"\Delta x = 7"), ("7", "dx=7"), ("7", r"\text{half of }x=7"), ("7", r"\text{negative } x = 7"), ("7", r"n \bmod 5 = 7"),
    ("7", r"x\%=7"), ("7", r"\dot x = 7"), ("7", r"\sqrt[3]{x}=7"), ("7", "e^x=7"), ("7", r"\cancel{7}"), ("7", r"\sqrt{7}"),
    ("7", r"\overline{7}"), ("7", "x-y=7"), ("7", r"\text{ the square of } x = 7"), ("7", r"\text{the reciprocal of x} = 7"),
    ("7", r"\text{square root} = 7"), (r"60^\circ", r"60 \text{ radians}"), (r"5^\circ", r"5\text{ cm}"), (r"60^\circ", r"60\text{ rad}"),
    (r"5\text{ cm}", r"5^\circ"), ("0.5", r"0.5\%"), ("0.1", r"10\%"), ("0.25", r"25\%"), (r"25\%", "2.5"),
    (r"25\%", r"25 \text{ percent off}"), ("25", r"25 \text{ percent off}"), ("(2,3)", "x=3,y=2"), ("x=2,y=3", "(3,2)"), ("A", "A or B"),
    ("A", "A) and B)"), ("A", "A: not"), ("A", "A) or (B)"), ("A", "Not A"), ("A", "(B) not (A)"), ("A", "B) A"), ("C", "c"),
    ("Yes", r"\text{Yes and no}"), ("Yes", r"\text{Yes, but no}"), ("No", r"\text{Not no}"), ("Yes", r"\text{No, yes}"), ("204", "204_5"),
    ("204_5", "204_6"), ("(1,2)", "1<x<2"), ("[1,2]", "1<x<2"), ("6", r"\binom{4}{2}"), (r"\mathbb{R}", "R"),
    (r"\mathbb{R}", r"\mathbb{Z}"), (r"\mathcal{N}", r"\mathbb{N}"), ("13", r"\mathbf{1}{2}"), ("13", r"\mathbf{31}"), ("7", "⁷"),
    ("7", "٧"), ("7", "\U0001d7d5"), ("x", "х"), ("7", "²7"), ("17", "1⁷"), ("x_2", "x²"), ("13", r"\overline{13}"),
    ("5", r"\text{5 or 6}"), ("5", r"\text{5, 6}"), ("5", r"\textbf{5}\textbf{6}"), ("2^3", "23"), ("1/2", "12"), ("x_1", "x1"),
    ("7", r"7 \text{ hundredths}"), ("7", r"7\text{ pairs of tens}"), ("7", r"7\text{ ths}"), ("7", r"7\text{ recip}"),
    ("7", r"7 \text{ to the power 2}"), ("7", r"7 \text{ squares of 2}"), ("7", r"\text{sqrt } 7"), ("7", r"7 \text{ is wrong}"),
    ("7", r"\text{approx. } 7"), ("7", r"7 \text{ (approx)}"), ("7", r"7 \text{ units squared minus one}"), ("7", r"7\text{ ln}"),
    ("7", r"7 \text{ complex roots}i"), ("7", r"7\text{ opposites}"), ("7", r"7 \text{ doubles}"), ("7", r"7\text{ in base 8}"),
    ("7", r"7\text{ modulo }9"), ("7", r"7\text{ degrees}\sqrt2"), ("7", r"7 \text{ plus}"), ("7", r"7 \text{ more than }x"),
    ("7", r"\text{7 or 8}"), ("7", r"7\text{ and }8"), ("7", r"7\text{/}8"), ("7", r"\text{7}\text{8}"), ("7", r"7\text{.5}"),
    ("7", r"7\text{ .5}"), ("7", r"\text{-}7"), ("7", r"\mathbf{-}7"), ("7", r"-\mathbf{7}"), ("7", r"\text{7 thousand}"),
    ("7", "7 thousand dollars"), ("7", r"\$7 \text{ million}"), ("7", r"7 \text{ M}"), ("7", r"7\text{B}"), ("7", r"7\text{e3}"),
    ("7", r"7 \text{ millions of dollars}"), ("7", r"7 \text{ tens of apples}"), ("7", r"7\text{ fortnights and one day}"),
    ("7", r"7\text{ reciprocals}"), ("7", r"7\text{ quintillion}"), ("7", r"7\text{ googol}"), ("7", r"7 \text{ myriad}"),
    ("7", r"7\text{ nths}"), ("7", r"7 \text{ sixteenths}"), ("7", r"7\text{ thirtieths}"), ("7", r"7 \text{ hundred-thousandths}"),
    ("7", r"7\text{ half-lives less}"), ("7", r"7 \text{ ten-thousandths}"), ("7", r"7 \text{ dozens}"), ("7", r"7 \text{ scores}"),
    ("7", r"7\text{ twenties}"), ("7", r"7\text{ centuries}x"), ("7", r"7\text{ conjugates}"), ("7", "y'=7"), ("7", "f(x)+1=7"),
    ("7", r"\lvert x \rvert=7"), ("7", r"x\cdot 1=7"), ("7", "2n=7"), ("7", "n!=7"), ("7", r"\frac{n}{2}=7"), ("7", r"\tan x=7"),
    ("7", r"\text{log }x=7"), ("7", r"\text{the square root of }x=7"), ("7", "x/2=7"), ("7", "x/y=7"), ("7", r"\binom{n}{2}=7"),
    ("7", "x^{2}=7"), ("7", "(x+1)=7"), ("7", "(x)(y)=7"), ("7", "a(b)=7x"), ("7", r"\Re z=7"), ("7", r"\lceil x\rceil=7"),
    ("7", "[x]=7"), ("7", r"\{x\}=7"), ("7", r"\vec{v}\cdot\vec{w}=7"), ("7", r"\nabla f=7"), ("7", r"\sum x=7"), ("7", r"\int f=7"),
    ("7", r"\log_2 x=7"), ("7", r"x \mod 9=7"), ("7", r"\neg x=7"), ("7", r"\sin^{-1}x=7"), ("7", "p q = 7"),
    ("7", r"\text{one less than } x=7"), ("7", r"\text{opposite of } x = 7"), ("7", r"\text{cube of }x=7"), ("7", r"x\text{ squared}=7"),
    ("7", r"x \text{ doubled} = 7"), ("7", r"\text{remainder of } x = 7"), ("7", r"\alpha\beta=7"), ("7", r"\overline{z}=7"),
    ("7", "-f(2)=7"), ("7", "f(2)^2=7"), ("7", "AB^2=7"), ("7", "AB+CD=7"), ("7", "1-P(A)=7"), ("7", "3f(2)=7"), ("7", r"\sqrt{AB}=7"),
    (r"60^\circ", r"60\text{ grads}"), (r"60^\circ", r"60\%"), (r"5\%", r"5^\circ"), (r"\$5", r"5\%"), (r"5 \text{ cm}", r"\$5"),
    (r"5\text{ cm}", "5''"), ("1", r"1\%"), ("0.5", r"50\%"), (r"25\%", r"25\%\%"), ("25", r"25\% \text{ of } 4"), ("25", r"x=25\%y"),
    ("25", r"25\%x"), (r"25\%", "0.25x"), ("25", r"\frac{25}{100}\%"), ("A", r"A \text{ and } C"), ("A", "A, B"), ("A", "A or not"),
    ("A", r"\text{A or B}"), ("A", "AB"), ("A", r"A) 5 \text{ or B) } 6"), ("A", "A)B)"), ("A", "A: C"), ("C", "(A) C"), ("A", r"\neg A"),
    ("A", "A'"), ("A", r"\bar{A}"), ("Yes", r"\text{Yes, or no}"), ("Yes", r"\text{Yes if } x>0"), ("Yes", r"\text{yes; no}"),
    ("No", "Yes"), ("True", r"\text{True, false}"), ("204_5", "204_{10}"), ("204_5", "402"), ("101_2", "5"), ("x=1,y=2", "(2,1)"),
    ("x=1,y=2", "(1,2,3)"), ("x=1,y=2", "[1,2]"), ("x=1,x=2", "(1,2)"), ("13", r"1\mathbf{4}"), ("3/4", r"\mathbf{\frac{4}{3}}"),
    (r"\mathbb{Q}", r"\mathbf{Q}"), (r"\mathcal{L}", "L"), ("x", "\U0001d465"), ("7", "\uff17\uff18"), ("7", "7²"), ("2", "½"),
    ("x^2", "x₂"), ("10", "1⁰"), ("3", "³"), ("-7", "—7"), (r"\binom{5}{2}x", "10y"), ("2^{8}x", "2^{2^{2^{3}}}x"), ("7", r"\cancel{8}7"),
    ("7", r"7\cancel{8}"), ("7", r"\phantom{8}7"), ("87", r"\phantom{8}7"), ("7", r"\sout{7}"), ("7", "~~7~~"), ("7", "7**"),
    ("49", "7**2"), ("7", r"\overset{.}{7}"), ("7", r"\stackrel{8}{7}"), ("7", r"7\color{white}8"), ("7", r"7\hspace{1cm}8"),
    ("7", "7 8"),
]  # fmt: skip


def is_equal(gold, answer):
    ruling = rule(gold, answer)
    return ruling.outcome is Outcome.CORRECT if ruling.outcome else compare(ruling.gold, ruling.answer) == "equal"


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold, answer):
    assert is_equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold, answer):
    assert not is_equal(gold, answer)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{\frac12} = \boxed{0.5}", "0.5"), (r"So \boxed{6}. She has \boxed{6 \text{ eggs}}.", r"6 \text{ eggs}"),
        (r"\boxed{70} and then \boxed{70.0}", "70"), (r"so \boxed{\mathbf{7}}, that is \boxed{7}", "7"),
        (r"In \boxed{} we get \boxed{6}", "6"),
        (r"\boxed{x = 3}, hence \boxed{3}", "3"),
    ],
)  # fmt: skip
def test_a_box_may_be_stated_again(response, answer):
    said = final_answer(response)
    assert said is not None and not said.hedged
    assert is_equal(answer, said.text)


@pytest.mark.parametrize(
    "response", [r"\boxed{7} or rather \boxed{8}", r"\boxed{0.33} so \boxed{\frac13}", r"\boxed{6 \text{ dozen}} is \boxed{6}"]
)
def test_another_value_hedges(response):
    box = final_box(response)
    assert box is not None
    assert box.hedged
