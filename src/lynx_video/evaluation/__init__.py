"""How much it is them, and how well the clip does what was asked: metrics, a benchmark, statistics, a report.

The way data goes: a folder of clips -> `layouts` (Entry: which clip shows whom doing what) -> `scorer` (Record: the numbers of one
clip) -> `summary` (means with intervals over subjects) -> `report`. `run` makes clips of a `grid` of subjects, prompts and seeds.
"""
