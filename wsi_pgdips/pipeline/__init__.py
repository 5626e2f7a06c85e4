"""The wiring: plan, ledger, the five stages, the worker pool. Only this room knows the others."""
