"""Damaged files, odd words, kills, full disks, two commands at once, hostile files, and a service under abuse: what every command
makes of them. ``make campaign CASES=10000`` runs it; ``docs/reliability.md`` says what is promised.

A case is a function of the seed, its target's name and its number: ``run.py --target NAME --seed 0 --case 17`` is that case again.
"""
