"""Tasks: what is run on which data, and how the results are shown."""
