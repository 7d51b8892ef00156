"""Runs two releases over one Redis, one schema and one group, under load, and checks that nothing is lost.

releases.py  finds the previous release
build.py     builds a release into an environment of its own
planted.py   newer releases that do not exist yet: patches of the present code
phases.py    the order of an upgrade, the way back, and the wrong order
fleet.py     readers and workers, replaced one after another
run.py       runs the phases under load
account.py   what was parked, read again, lost and duplicated, by phase
result.py    the result, and its table
"""
