"""Places on chromosomes: names of peaks, genome builds, and the k-mers of sequences."""
