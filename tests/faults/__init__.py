"""A kit that kills, fills, corrupts and delays whatever Penchant does, and asks for the same bits afterwards.

`python -m tests.faults --count 200 --seed 0`; a line is reproduced by `--seed S --only K`.
"""
