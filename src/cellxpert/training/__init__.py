"""How a network learns: objectives, optimiser, the Lightning plan and the run that resumes."""
