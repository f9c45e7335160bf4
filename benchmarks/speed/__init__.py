"""Speed: what is timed against what, and the plain forms of the rivals."""
