"""Runs two releases with one Redis, schema and consumer group under load, and checks that nothing is lost.

releases.py  finds the previous release
build.py     builds a release into a separate environment
planted.py   newer releases that do not exist yet, made by patching the current code
phases.py    an upgrade in the documented order, a downgrade, and an upgrade in the wrong order
fleet.py     starts readers and workers, and replaces them one after another
run.py       runs the phases under load
account.py   batches that were parked, and messages that were read again
result.py    the result, and its table
"""
