"""Every order of events in a small world, on the production code: `make explore`.

The simulation tries random worlds. Here a world is so small that each of its states is visited, breadth first, and
each decision in them is judged by an oracle that shares no code with what it judges.

    search         breadth first to the last state; counterexamples; whether the end stays reachable
    core_model     two readers with the real `Pipeline`; `readers` has what can happen to one of them
    oracle         what must hold there, stated without the core
    cores          the real pipelines; `canonical` makes two of them comparable
    staging_model  one staged batch, its chords, marks and completions, with an oracle over what sinks hold
    programs       the real code of the fleet, one round trip at a time; `hashes` is the Redis below it

docs/proof.md has the bounds, the figures, and what this cannot see.
"""
