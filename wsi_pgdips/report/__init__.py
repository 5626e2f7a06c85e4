"""What a run looks like and how good it is: pictures and figures from arrays, nothing decided here.

* ``seams``: the step across tile borders.
* ``truth``: errors against the exact truth of a phantom.
* ``plots``: one overview figure of a slide's layers and fields.
"""
