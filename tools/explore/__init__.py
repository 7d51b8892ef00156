"""Explores every order of events in small worlds that run the production code: `make explore`.

The simulation tries random worlds; the explorer uses worlds that are small enough to visit every state, breadth
first. An oracle that shares no code with the core checks each decision.

    search         breadth-first search of all states; counterexamples; whether the end stays reachable
    core_model     two readers with the real `Pipeline`; `readers` has the events of one reader
    oracle         the invariants, stated without the core
    cores          the real pipelines; `canonical` makes them comparable
    staging_model  one staged batch, its chords, marks and completions, with an oracle over the contents of sinks
    planted        bugs that the explorer must find; `judged` classifies other bugs by whether they break safety
    programs       the real code of the fleet, one round trip at a time; `hashes` simulates Redis

docs/proof.md has the bounds, the figures, and the limits of this method.
"""
