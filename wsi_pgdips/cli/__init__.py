"""The command line: parse, call, print.

Heavy imports happen inside the commands, so that help comes at once.
"""

from wsi_pgdips.cli import cohort, estimate, normalize, phantom, reference, run, slurm, stains
from wsi_pgdips.cli.app import app, main

__all__ = ["app", "main"]

# in the order of the help
app.command()(run.run)
app.command()(run.info)
app.command()(estimate.estimate)
app.command()(normalize.normalize)
app.command()(normalize.export)
app.command()(reference.compare)
app.command()(phantom.phantom)
app.command()(phantom.demo)
app.add_typer(cohort.cohort_app, name="cohort")
app.add_typer(slurm.slurm_app, name="slurm")
app.add_typer(stains.stains_app, name="stains", invoke_without_command=True)
app.add_typer(reference.reference_app, name="reference")
