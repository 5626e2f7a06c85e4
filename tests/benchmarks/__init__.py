"""The benchmark: the product beside linear baselines, its own ablations and exact truth.

``quality.run`` measures, ``page.render`` turns its records into a page; ``docs/results/README.md``
explains both. Nothing of a run imports this package.
"""
